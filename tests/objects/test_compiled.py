"""Where compiled code may be kept, it is; where not, it works all the same."""

from hpc_isl.objects.compiled import compiled


def doubled(number):
    return 2 * number


def test_without_a_place_to_keep_it_a_function_is_compiled_for_this_process(monkeypatch):
    # Only a package within a zip archive would find a place so.
    monkeypatch.setattr("numba.core.config.CACHE_LOCATOR_CLASSES", "ZipCacheLocator", raising=False)
    assert compiled(doubled)(3) == 6


def test_compiled_code_is_kept_in_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    assert compiled(doubled)(3) == 6
    assert list(tmp_path.rglob("*.nbi"))

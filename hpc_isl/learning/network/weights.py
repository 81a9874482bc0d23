"""Encoder weights: a local file, or a download from the library's hub if that answers quickly."""

from __future__ import annotations

import http.client
import pickle
import threading
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import safetensors
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.network.limits import SUFFIXES, is_file


class Hub(NamedTuple):
    """A file of the Hugging Face hub."""

    repo: str
    revision: str | None
    file: str


def find_weights(encoder: str, weights: str) -> Path:
    """Returns the file of the weights: the given one, the cached one, or one that it downloads now.

    Raises:
        UserError: no such file or name; or the weights are not on this machine and the hub does not
            answer within 3 s.
    """
    if is_file(weights):
        path = Path(weights).expanduser()
        if path.is_file() and path.suffix in SUFFIXES:
            return path
        raise UserError(f"net.weights={weights}: there is no such {' or '.join(SUFFIXES)} file")
    hub = hub_file(encoder, weights)
    cached = huggingface_hub.try_to_load_from_cache(hub.repo, hub.file, revision=hub.revision)
    if isinstance(cached, str):
        return Path(cached)
    return _download(encoder, weights, hub)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Returns the encoder's tensors in a file; runs no code in it.

    Names may begin with `module.` (of parallel training); from a whole U-Net the encoder's are taken.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            # Warnings are about the pickle's protocol; the file is then either read or refused.
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds code beside the weights (a pickled object) and is not opened: save the state_dict "
            "alone, as .safetensors or with torch.save"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable weights file: {str(error).splitlines()[0]}") from None
    # Training programs wrap the weights among their own entries.
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no mapping of names to tensors")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # The decoder of a U-Net is left out: it was learnt for other outputs.
    inner = {name[len("encoder.") :]: t for name, t in state.items() if name.startswith("encoder.")}
    return inner or state


def hub_file(encoder: str, weights: str) -> Hub:
    """Returns the place where the library keeps the weights of that name."""
    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder[3:], allow_unregistered=True)
        if weights != "imagenet" or config is None or not config.hf_hub_id:
            raise UserError(
                f"net.weights={weights!r}: for timm's encoders write 'imagenet' and choose by a tag in "
                f"net.encoder, tu-NAME.TAG ({encoder[3:]} has {'some' if config else 'none'}), or give "
                "a file, or null"
            )
        repo, _, revision = config.hf_hub_id.partition("@")
        return Hub(repo, revision or None, config.hf_hub_filename or "model.safetensors")
    settings = smp.encoders.encoders[encoder]["pretrained_settings"]
    if weights not in settings:
        raise UserError(
            f"net.weights={weights!r}: {encoder} has no such weights; {nearest(weights, settings)}; or give "
            f"a {' or '.join(SUFFIXES)} file, or null"
        )
    return Hub(settings[weights]["repo_id"], settings[weights]["revision"], "model.safetensors")


def _download(encoder: str, weights: str, hub: Hub) -> Path:
    url = huggingface_hub.hf_hub_url(hub.repo, hub.file, revision=hub.revision)
    if not constants.HF_HUB_OFFLINE and _answers(url):
        try:
            return Path(huggingface_hub.hf_hub_download(hub.repo, hub.file, revision=hub.revision))
        except (OSError, ValueError) as error:  # the hub's own errors are of both kinds
            reason = f"the download failed ({str(error).splitlines()[0]})"
    else:
        reason = f"{constants.ENDPOINT} cannot be reached"
    raise UserError(
        f"net.weights={weights}: the weights of {encoder} are not on this machine, and {reason}. Either\n"
        f"  - on a machine with internet, download {url}\n"
        "    and give the file: net.weights=/path/to/model.safetensors\n"
        f"  - or set HF_HOME to a cache that holds {hub.repo}\n"
        "  - or start from random weights: net.weights=null"
    )


def _answers(url: str, seconds: float = 3.0) -> bool:
    """Returns whether the server answers at all in that time."""
    heard = threading.Event()  # set by a thread, because a name server that hangs honours no timeout

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  the hub's address, set by the user
            urllib.request.urlopen(request, timeout=seconds).close()  # noqa: S310
            heard.set()
        except urllib.error.HTTPError:
            heard.set()
        except (OSError, ValueError, http.client.HTTPException):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return heard.is_set()

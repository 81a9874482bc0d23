# Sourced by the scripts beside it: `environment NAME==VERSION …` makes a temporary environment with these packages and
# puts its programs first on the path; it goes when the script ends.
set -euo pipefail

environment() {
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "${PYTHON:-python3}" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    PATH=$folder/venv/bin:$PATH
    cd "$folder"
}

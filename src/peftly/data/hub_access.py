"""Whether the Hugging Face Hub can be reached, and reading from its caches alone if it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hub_answers", "hub_problem", "only_cached"]


def hub_answers() -> bool:
    """Return whether the Hub (or HF_ENDPOINT) answers: else its client would try each file for half a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # noqa: BLE001 - errors of the client's HTTP library, whichever it is; HF_HUB_OFFLINE raises, too
        return False
    return True


def hub_problem() -> str:
    """Return the reason why the Hub does not answer, and what can be tried."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids the Hub: unset it, try HF_ENDPOINT (a mirror) or HTTPS_PROXY"
    return "the Hub does not answer: check the network, try HF_ENDPOINT (a mirror) or HTTPS_PROXY"


@contextmanager
def only_cached() -> Iterator[None]:
    """Let the client of the Hub read its caches inside the block, and send no request."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

"""What python-tuf raises, as our errors: what happened, whose doing it may be, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)

from triskele.errors import ConfigurationError, ModelRefused, NotFound, TimedOut, Unavailable

_ABSENT: Final = (401, 403, 404, 410)


@contextmanager
def typed_refusals(source: str) -> Iterator[None]:
    """Turn what fails inside into ModelRefused, NotFound, TimedOut, Unavailable or ConfigurationError."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise ModelRefused(
            "expired",
            f"{source}: {error}. Either the publisher no longer renews it (`triskele model refresh`), or somebody "
            "keeps newer releases from this device, or its clock is wrong; nothing new is used until that is mended",
        ) from error
    except BadVersionNumberError as error:
        raise ModelRefused(
            "rolled_back",
            f"{source}: is older than what this device has seen before ({error}): a mirror that lags behind, or "
            "somebody who offers an old state; use another source",
        ) from error
    except UnsignedMetadataError as error:
        raise ModelRefused(
            "unsigned",
            f"{source}: is not signed by the keys that this device trusts ({error}). The repository is another one, or "
            "was changed by somebody without the keys; ask the publisher which root.json is theirs",
        ) from error
    except LengthOrHashMismatchError as error:
        raise ModelRefused(
            "altered",
            f"{source}: has other bytes than were signed ({error}): damaged, changed, or put together from several "
            "states of the repository; use another source",
        ) from error
    except RepositoryError as error:
        raise ModelRefused(
            "malformed", f"{source}: is no repository of models that can be read ({error}); is the address right?"
        ) from error
    except DownloadLengthMismatchError as error:
        raise ModelRefused("too_large", f"{source}: sends more than was announced ({error}); it was cut off") from error
    except SlowRetrievalError as error:
        raise TimedOut(
            f"{source}: takes too long ({error or 'no answer in time'}); try again, or another source"
        ) from error
    except DownloadHTTPError as error:
        if error.status_code in _ABSENT:
            raise NotFound(f"{source}: {error}; is this where a repository of models begins?") from error
        raise Unavailable(f"{source}: {error}") from error
    except DownloadError as error:
        raise Unavailable(
            f"{source}: {error}" + (f" ({type(error.__cause__).__name__})" if error.__cause__ else "")
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or source}: cannot be read or written ({error.strerror or type(error).__name__})"
        ) from error

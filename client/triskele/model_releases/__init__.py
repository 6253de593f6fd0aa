"""Models as signed releases: version k, made from version k-1 in rounds that the parties vouch for.

A repository of models is a folder of static files (The Update Framework's), so that any web server, object store or
disk can hold it. The coordinator has no part in it: under the default release it must not see a model. Who publishes:
`ModelRepository`. Who runs a model: `pull_model`, `verify_model`, with one `TrustFolder` of public keys.
"""

from triskele.errors import ConfigurationError

try:
    from triskele.model_releases.download import DownloadLimits
    from triskele.model_releases.publishing import Lifetimes, ModelRepository, Published, Thresholds
    from triskele.model_releases.pulling import PulledModel, VerifiedModel, pull_model, verify_model
    from triskele.model_releases.releases import CertifiedRound, Release, ReleaseChain
    from triskele.model_releases.role_keys import RoleKeys
    from triskele.model_releases.trust_folder import TrustFolder
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("tuf", "urllib3"):
        raise
    raise ConfigurationError(
        f"releases of models need python-tuf ({error.name} is missing): pip install 'triskele[models]'"
    ) from error

__all__ = [
    "CertifiedRound",
    "DownloadLimits",
    "Lifetimes",
    "ModelRepository",
    "Published",
    "PulledModel",
    "Release",
    "ReleaseChain",
    "RoleKeys",
    "Thresholds",
    "TrustFolder",
    "VerifiedModel",
    "pull_model",
    "verify_model",
]

"""Triskele: federated learning in which no server sees an update and poisoned updates are filtered all the same."""

from triskele.errors import (
    ConfigurationError,
    Conflict,
    Forbidden,
    InvalidTask,
    InvalidUpdate,
    NotFound,
    ParticipantFault,
    PartyFault,
    RoundFailed,
    TriskeleError,
    Unavailable,
    WrongState,
)
from triskele.participant import Participant
from triskele.round import Round, SubmittedUpdate
from triskele.upload import UploadProgress
from triskele.views import RoundView, TaskView

__all__ = [
    "ConfigurationError",
    "Conflict",
    "Forbidden",
    "InvalidTask",
    "InvalidUpdate",
    "NotFound",
    "Participant",
    "ParticipantFault",
    "PartyFault",
    "Round",
    "RoundFailed",
    "RoundView",
    "SubmittedUpdate",
    "TaskView",
    "TriskeleError",
    "Unavailable",
    "UploadProgress",
    "WrongState",
]

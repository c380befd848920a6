"""Classifies errors of the server: an outage, access denied, a key of another writer, a failure of our own script.

Redis before 7.0 wraps the error of a command inside a script, so redis-py does not recognise its kind.
"""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions as redis

from otel_mcp.store.base import StoreDown

_DENIED: Final = (
    redis.AuthenticationError,
    redis.AuthorizationError,
    redis.NoPermissionError,
    redis.AuthenticationWrongNumberOfArgsError,
)
_ANY: Final = (redis.RedisError, redis.RedisClusterException, OSError, EOFError)
_DENIALS: Final = ("NOAUTH ", "executing the script can't", "ACL failure")
"""Texts of denials that have no class of their own: for a command or a key inside a script."""
_SCRIPT: Final = re.compile(r"(?:ERR )?(?:Error running script \(call to \w+\): @user_script:\d+: )?user_script:\d+: ")
"""How errors of the scripts themselves begin; a retry would fail too."""
_WRAPPING: Final = re.compile(r"(?:Error running script \(call to \w+\): )?(?:@user_script: ?\d+: )*-?(?:ERR )?")
"""Prefix that Redis before 7.0 adds to the error of a command inside a script."""
_TOO_OLD: Final = ("unknown", "syntax", "wrong number", "write commands")
"""How errors begin if a server does not support a command or option of ours, or not in scripts like ours."""
OLDEST: Final = 5
"""Oldest major version of Redis that supports all commands that we use."""


def outage(error: BaseException) -> StoreDown | None:
    """Translate an error of the whole store; `None` if it concerns one command."""
    if isinstance(error, StoreDown):
        return error
    name = type(error).__name__
    text = str(error)
    if isinstance(error, _DENIED) or any(sign in text for sign in _DENIALS):
        return StoreDown(name, denied=True)
    if isinstance(error, redis.DataError) or is_foreign(error) or is_ours(error) or not isinstance(error, _ANY):
        return None
    if type(error) is not redis.ResponseError:
        return StoreDown(name)
    # Kinds that redis-py has no name for, such as MISCONF, NOREPLICAS and BUSY, are named by their first word.
    text = unwrapped(text)
    code = text.partition(" ")[0][:32]
    if code.isupper():
        return StoreDown(code)
    reason = " ".join(text.split()[:2])[:32] or name
    return StoreDown(f"{reason}: Redis {OLDEST}.0 or newer is needed" if text.lower().startswith(_TOO_OLD) else reason)


def unwrapped(text: str) -> str:
    """Return the text of an error; inside a script, that of the command."""
    return _WRAPPING.sub("", text, count=1)


def is_foreign(error: object) -> bool:
    """Return whether a key of ours holds a value of another type."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def is_ours(error: object) -> bool:
    """Return whether a script of ours failed on what it was given."""
    return isinstance(error, redis.ResponseError) and _SCRIPT.match(str(error)) is not None

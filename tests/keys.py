"""A credential cache with a fake provider."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from aiobotocore.credentials import AioCredentials

from batchcl.aws.credentials import CredentialCache


def cache_of(provide: Callable[[], str]) -> CredentialCache:
    """Return a cache whose only provider calls `provide` for an access key at each look-up."""

    async def load() -> Any:
        return AioCredentials(provide(), "secret")

    provider = SimpleNamespace(METHOD="custom-process", load=load)
    session: Any = SimpleNamespace(
        get_config_variable=lambda name: f"no {name}",
        get_component=lambda _: SimpleNamespace(providers=[provider]),
    )
    return CredentialCache(lambda: session)

"""Whose credentials these are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchcl.aws.errors import translate_errors

__all__ = ["Identity", "caller_identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """An account, and the ARN of the user or role in it."""

    account: str
    arn: str


async def caller_identity(client: Any) -> Identity:
    """The identity that signs, by GetCallerIdentity of an open STS client; it needs no permission.

    Raises:
        CredentialsError: AWS doesn't know the credentials, or they have expired.
        UnreachableError: STS doesn't answer.
    """
    with translate_errors("asking whose credentials these are"):
        answer = await client.get_caller_identity()
    return Identity(answer["Account"], answer["Arn"])

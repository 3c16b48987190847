"""Checks of credentials, account, region and clock."""

from __future__ import annotations

from typing import Final

from batchcl.aws.account import caller_identity
from batchcl.diagnosis.context import CheckContext, CheckResult
from batchcl.diagnosis.findings import CheckStatus
from batchcl.errors import CredentialsError, UnreachableError

__all__ = ["check_account", "check_clock", "check_credentials", "check_region"]

_TAIL = 4


async def check_credentials(context: CheckContext) -> CheckResult:
    """Whether credentials are found."""
    credentials = context.aws.credentials_of("rekognition")
    keys = await credentials.current()
    source = {"env": "the environment", "explicit": "the emulator"}.get(credentials.method, credentials.method)
    profile = f", profile {context.job.profile}" if context.job.profile else ""
    return CheckStatus.OK, f"access key …{keys.access_key[-_TAIL:]} from {source}{profile}"


async def check_account(context: CheckContext) -> CheckResult:
    """Whether the credentials belong to the model's account: DetectCustomLabels works in no other."""
    try:
        async with context.aws.auxiliary_client("sts", region=context.region) as client:
            context.clock.listen(client)
            identity = await caller_identity(client)
    except UnreachableError as error:
        return CheckStatus.WARN, str(error)
    except CredentialsError as error:
        if not context.is_amazon:
            return CheckStatus.WARN, str(error)
        raise
    if context.target.has_model and identity.account != context.model.account:
        return CheckStatus.FAIL, (
            f"the credentials are {identity.arn} of account {identity.account}, and the model is in account "
            f"{context.model.account}; assume a role there, or copy the model with `batchcl model copy`"
        )
    return CheckStatus.OK, f"{identity.account}, as {identity.arn}"


async def check_region(context: CheckContext) -> CheckResult:
    """Which region is used: the model's, regardless of the settings."""
    session = context.aws.region
    if not context.target.has_model:
        if context.aws.has_region:
            return CheckStatus.OK, f"{context.region}, from the AWS settings"
        return CheckStatus.WARN, f"no region is configured: {context.region} is used; set AWS_REGION or pass --region"
    if context.aws.has_region and session != context.region:
        return CheckStatus.OK, f"{context.region}, the model's region; {session} from the AWS settings is not used"
    return CheckStatus.OK, f"{context.region}, the model's region"


_MAX_OFFSET_S: Final = 300.0
"""From this offset on AWS refuses signed requests (IAM user guide, "Troubleshoot signed requests for AWS APIs")."""

_WARN_OFFSET_S: Final = 60.0


async def check_clock(context: CheckContext) -> CheckResult:
    """Compare the clock with the `Date` headers of the responses so far."""
    ahead = context.clock.ahead
    if ahead is None:
        return CheckStatus.WARN, "no response had a Date header to compare the clock with"
    offset_s = ahead.total_seconds()
    text = f"this machine's clock is {abs(offset_s):,.0f} s {'behind' if offset_s > 0 else 'ahead of'} the service's"
    if abs(offset_s) >= _MAX_OFFSET_S:
        return CheckStatus.FAIL, f"{text}; AWS refuses requests from 300 s on; set the clock (chrony, ntpd)"
    if abs(offset_s) >= _WARN_OFFSET_S:
        return CheckStatus.WARN, f"{text}; AWS refuses requests from 300 s on; set the clock (chrony, ntpd)"
    return CheckStatus.OK, "this machine's clock differs from the service's by less than a minute"

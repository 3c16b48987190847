"""Credentials, account, region and clock."""

from __future__ import annotations

from typing import Final

from batchcl.aws.account import caller_identity
from batchcl.diagnosis.context import Answer, CheckContext
from batchcl.diagnosis.findings import CheckStatus
from batchcl.errors import CredentialsError, UnreachableError

__all__ = ["check_account", "check_clock", "check_credentials", "check_region"]

_TAIL = 4


async def check_credentials(case: CheckContext) -> Answer:
    """There are some; who they belong to is the next question."""
    found = case.aws.keys_of("rekognition")
    keys = await found.current()
    how = {"env": "the environment", "explicit": "the emulator"}.get(found.method, found.method)
    profile = f", profile {case.job.profile}" if case.job.profile else ""
    return CheckStatus.OK, f"access key …{keys.access_key[-_TAIL:]}, found by {how}{profile}"


async def check_account(case: CheckContext) -> Answer:
    """The model's account, as DetectCustomLabels works in no other."""
    try:
        async with case.aws.bystander("sts", region=case.region) as client:
            case.clock.listen(client)
            who = await caller_identity(client)
    except UnreachableError as error:
        return CheckStatus.WARN, f"whose credentials these are isn't known: {error}"
    except CredentialsError as error:
        if not case.is_amazon:
            return CheckStatus.WARN, f"whose credentials these are isn't known: {error}"
        raise
    if case.subject.has_model and who.account != case.model.account:
        return CheckStatus.FAIL, (
            f"these are {who.arn} of account {who.account}, and the model is account {case.model.account}'s; take a "
            "role there, or copy the model over with `batchcl model copy`"
        )
    return CheckStatus.OK, f"{who.account}, as {who.arn}"


async def check_region(case: CheckContext) -> Answer:
    """The model's, whatever the settings say."""
    session = case.aws.region
    if not case.subject.has_model:
        if case.aws.names_region:
            return CheckStatus.OK, f"{case.region}, by the AWS settings"
        return CheckStatus.WARN, f"no region is set, so this is {case.region}; set AWS_REGION, or say --region"
    if case.aws.names_region and session != case.region:
        return CheckStatus.OK, f"{case.region}, where the model is; {session} of the AWS settings plays no part"
    return CheckStatus.OK, f"{case.region}, where the model is"


_REFUSED_S: Final = 300.0
"""Requests signed so far off are refused; source: IAM user guide, "Troubleshoot signed requests for AWS APIs"."""

_NOTABLE_S: Final = 60.0


async def check_clock(case: CheckContext) -> Answer:
    """By the Date of the answers so far."""
    ahead = case.clock.ahead
    if ahead is None:
        return CheckStatus.WARN, "nobody answered with a time to compare this machine's clock with"
    seconds = ahead.total_seconds()
    off = f"this machine's clock is {abs(seconds):,.0f} s {'behind' if seconds > 0 else 'ahead of'} the service's"
    if abs(seconds) >= _REFUSED_S:
        return CheckStatus.FAIL, f"{off}, and requests signed five minutes off are refused; set it (chrony, ntpd)"
    if abs(seconds) >= _NOTABLE_S:
        return CheckStatus.WARN, f"{off}; set it (chrony, ntpd) before it is five minutes, when requests are refused"
    return CheckStatus.OK, "this machine's clock agrees with the service's to a minute"

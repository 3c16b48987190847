"""Who asks, and where: credentials, account, region."""

from __future__ import annotations

from batchcl.aws.identity import caller_identity
from batchcl.doctor.case import Answer, Case
from batchcl.doctor.findings import Verdict
from batchcl.errors import CredentialsError, UnreachableError

__all__ = ["check_account", "check_credentials", "check_region"]

_TAIL = 4


async def check_credentials(case: Case) -> Answer:
    """There are some; who they belong to is the next question."""
    found = case.aws.keys_of("rekognition")
    keys = await found.current()
    how = {"env": "the environment", "explicit": "the emulator"}.get(found.method, found.method)
    profile = f", profile {case.job.profile}" if case.job.profile else ""
    return Verdict.OK, f"access key …{keys.access_key[-_TAIL:]}, found by {how}{profile}"


async def check_account(case: Case) -> Answer:
    """The model's account, as DetectCustomLabels works in no other."""
    try:
        async with case.aws.bystander("sts", region=case.region) as client:
            case.clock.listen(client)
            who = await caller_identity(client)
    except UnreachableError as error:
        return Verdict.WARN, f"whose credentials these are isn't known: {error}"
    except CredentialsError as error:
        if not case.is_amazon:
            return Verdict.WARN, f"whose credentials these are isn't known: {error}"
        raise
    if case.subject.has_model and who.account != case.model.account:
        return Verdict.FAIL, (
            f"these are {who.arn} of account {who.account}, and the model is account {case.model.account}'s; take a "
            "role there, or copy the model over with `batchcl model copy`"
        )
    return Verdict.OK, f"{who.account}, as {who.arn}"


async def check_region(case: Case) -> Answer:
    """The model's, whatever the settings say."""
    session = case.aws.region
    if not case.subject.has_model:
        if case.aws.names_region:
            return Verdict.OK, f"{case.region}, by the AWS settings"
        return Verdict.WARN, f"no region is set, so this is {case.region}; set AWS_REGION, or say --region"
    if case.aws.names_region and session != case.region:
        return Verdict.OK, f"{case.region}, where the model is; {session} of the AWS settings plays no part"
    return Verdict.OK, f"{case.region}, where the model is"

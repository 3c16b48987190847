"""Failures of the SDK's credential providers, and the cache's errors for them."""

from __future__ import annotations

import datetime as dt
import getpass
import hashlib
import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from botocore.exceptions import ClientError
from botocore.tokens import SSOTokenProvider

from batchcl.arns import ModelArn
from batchcl.aws.buckets import BucketChecks
from batchcl.aws.credentials import MAX_FAILING_S, CredentialCache, FixedCredentials, call_error
from batchcl.aws.detect import open_detector
from batchcl.aws.session import Aws, AwsSettings
from batchcl.choices import Transport
from batchcl.errors import CredentialsError, CredentialsFailingError, ExitCode, FatalCallError
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from keys import cache_of
from unit.aws.raw_server import RawServer, answering, error, http
from virtual import run_virtual

SECRET = "hunter2+Secret/Value00"
ROLE = "arn:aws:iam::123456789012:role/Nope"
BASE = f"[profile base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = {SECRET}\n"
ASSUMED = f"role_arn = {ROLE}\nsource_profile = base\n"
SSO = "sso_session = corp\nsso_account_id = 123456789012\nsso_role_name = Dev\n"
CORP = (
    "[sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://corp.awsapps.com/start\n"
    "sso_registration_scopes = sso:account:access\n"
)
DENIED = http(
    403,
    b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>User base may not sts:AssumeRole"
    b"</Message></Error></ErrorResponse>",
)
TOKEN = {"accessToken": SECRET, "expiresAt": "2099-01-01T00:00:00Z", "region": "us-east-1"}
IMAGE = ImageRef(uri="s3://pics/k", bucket="pics", key="k")
MODEL = ModelArn.parse("arn:aws:rekognition:us-east-1:123456789012:project/dogs/version/v1/1700000000000")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS settings in environment and home directory."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(sys, "stdin", None)


def printing(text: str) -> str:
    """A profile whose credential_process prints `text`."""
    return f"credential_process = {sys.executable} -c \"print('''{text}''')\"\n"


def keys_until(expiration: str) -> str:
    return json.dumps(
        {"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": SECRET, "SessionToken": "t", "Expiration": expiration}
    ).replace('"', r"\"")


def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Write the token of `aws sso login` for the session `corp` where botocore looks for it."""
    monkeypatch.setattr(SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / f"{hashlib.sha1(b'corp').hexdigest()}.json").write_text(text)


PROFILES = {
    "sentence": (
        printing(f"Please log in at https://corp/login with {SECRET}"),
        "of profile x with credential_process failed: its output is not JSON; run that command in a shell",
    ),
    "a list": (printing("[1]"), "with credential_process failed: its output is malformed (AttributeError); run"),
    "missing": (
        "credential_process = /opt/corp/get-aws-creds --json\n",
        "credential_process failed: No such file or directory: /opt/corp/get-aws-creds; run that command in a shell",
    ),
    "exit 3": ("credential_process = /bin/sh -c \"echo 'token expired' >&2; exit 3\"\n", "failed: token expired; run"),
    "loud": (
        f"credential_process = /bin/sh -c 'echo SecretAccessKey={SECRET} token: {SECRET} {SECRET} >&2; exit 1'\n",
        "failed: SecretAccessKey=*** token: *** ***; run",
    ),
    "expiration": (printing(keys_until(f"tomorrow {SECRET}")), "failed: its Expiration is not a time; run that"),
    "web identity": (
        f"role_arn = {ROLE}\nweb_identity_token_file = /var/run/no/token\n",
        "with the web identity failed: No such file or directory: /var/run/no/token; check web_identity_token_file",
    ),
    "denied": (
        ASSUMED,
        "of profile x with role_arn failed: AccessDenied: User base may not sts:AssumeRole; check role_arn",
    ),
    "mfa": (
        f"{ASSUMED}mfa_serial = arn:aws:iam::123456789012:mfa/me\n",
        "failed: it needs an MFA code, but stdin is not a terminal; use a profile without mfa_serial",
    ),
    "no login": (
        SSO,
        "with SSO failed: Error loading SSO Token: Token for corp does not exist; log in again with `aws sso login",
    ),
    "quotation": ("credential_process = /bin/echo 'open\n", "credential_process failed: No closing quotation; run"),
    "half the keys": (printing(r"{\"Version\": 1}"), "Missing required key in response: 'AccessKeyId'; run"),
    "no source": (f"role_arn = {ROLE}\nsource_profile = gone\n", 'The source_profile "gone" referenced'),
    "half a pair": ("aws_access_key_id = AKID\n", "config and credentials files failed: Partial credentials"),
}


async def refusal(aws: Aws) -> CredentialsError:
    with pytest.raises(CredentialsError) as caught:
        await aws.check_credentials()
    return caught.value


@pytest.mark.parametrize("kind", PROFILES)
def test_any_provider_error_is_one_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, says = PROFILES[kind]
    (tmp_path / "config").write_text(f"[profile x]\nregion = us-east-1\n{profile}{BASE}{CORP}")

    async def main() -> list[CredentialsError]:
        async with answering(DENIED) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            aws = Aws(AwsSettings(profile="x"))
            found = [await refusal(aws)]
            with pytest.raises(CredentialsError) as caught:
                await BucketChecks(aws, region="us-east-1").check(["pics"])
            return [*found, caught.value]

    for raised in anyio.run(main):
        assert says in str(raised)
        assert str(raised).startswith("loading the AWS credentials ")
        assert "\n" not in str(raised)
        assert SECRET not in f"{raised} {raised!r}"
        assert "s3:ListBucket" not in str(raised)
        assert (raised.exit_code, raised.may_pass) == (ExitCode.REFUSED, False)


ENVIRONMENTS = {
    "expired": (
        {"AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"},
        "with the environment variables failed: Credentials were refreshed, but the refreshed credentials are still",
    ),
    "no time": (
        {"AWS_CREDENTIAL_EXPIRATION": "soon", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"},
        "its Expiration is not a time",
    ),
    "container": (
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://evil.example/x"},
        "with the container's role failed: Unsupported host 'evil.example'",
    ),
    "half": ({"AWS_ACCESS_KEY_ID": "A"}, "Partial credentials found in env"),
    "token file": (
        {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/token"},
        "with the web identity failed: No such file or directory: /no/token",
    ),
    "nothing": ({}, "no AWS credentials found; set AWS_PROFILE"),
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_bad_environment_variables_are_one_sentence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, says = ENVIRONMENTS[kind]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in str(anyio.run(refusal, Aws()))


@pytest.mark.parametrize(
    ("left", "answer", "says"),
    [
        (json.dumps(TOKEN)[:-9], b"", "SSO failed: the saved login can't be read; log in again"),
        ("{}", b"", "SSO failed: "),
        (
            json.dumps(TOKEN),
            http(403, b'{"message": "No access"}', ("x-amzn-ErrorType", "ForbiddenException")),
            "SSO failed: ForbiddenException: No access; log in again",
        ),
        (
            json.dumps(TOKEN | {"expiresAt": "2020-01-01T00:00:00Z"}),
            b"",
            "Token has expired and refresh failed; log in again with `aws sso login --profile x`",
        ),
    ],
    ids=["truncated", "empty", "denied", "expired"],
)
def test_a_bad_sso_login_is_one_sentence(
    left: str, answer: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[profile x]\nregion = us-east-1\n{SSO}{CORP}")
    login(tmp_path, monkeypatch, left)

    async def main() -> CredentialsError:
        async with answering(answer) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            return await refusal(Aws(AwsSettings(profile="x")))

    assert says in (text := str(anyio.run(main)))
    assert SECRET not in text


ASSUMED_ROLE = http(
    200,
    b"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s"
    b"</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
    b"</AssumeRoleResult></AssumeRoleResponse>",
    ("Content-Type", "text/xml"),
)


def test_an_mfa_code_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the session has expired, hours later, a prompt would block the run."""
    mfa = "mfa_serial = arn:aws:iam::123456789012:mfa/me\n"
    (tmp_path / "config").write_text(f"[profile x]\nregion = us-east-1\n{ASSUMED}{mfa}{BASE}")
    asked: list[str] = []

    def code(prompt: str) -> str:
        asked.append(prompt)
        return "123456"

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(getpass, "getpass", code)

    async def main() -> None:
        async with answering(ASSUMED_ROLE) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            cache = Aws(AwsSettings(profile="x")).credentials
            keys = await cache.current()
            assert keys.access_key == "ASIA"
            assert b"TokenCode=123456" in server.asked[0].body
            with pytest.raises(CredentialsError, match="failed: the MFA session has expired; use"):
                await cache.renew(keys)

    anyio.run(main)
    assert len(asked) == 1


# --- five minutes ---------------------------------------------------------------------------------------------------


class Provider:
    """A provider that returns keys until it is broken."""

    def __init__(self) -> None:
        self.is_broken = False
        self.look_ups = 0

    def __call__(self) -> str:
        self.look_ups += 1
        if self.is_broken:
            raise FileNotFoundError(2, "No such file or directory", "/opt/keys")
        return f"KEY{self.look_ups}"


def test_valid_credentials_may_fail_for_five_minutes() -> None:
    provider = Provider()

    async def main() -> None:
        cache = cache_of(provider)
        keys = await cache.current()
        assert keys.access_key == "KEY1"
        provider.is_broken = True
        for _ in range(int(MAX_FAILING_S) - 1):
            with pytest.raises(CredentialsError, match="/opt/keys") as caught:
                await cache.renew(keys)
            assert caught.value.may_pass
            assert type(call_error(caught.value)) is CredentialsFailingError
            await anyio.sleep(1)
        await anyio.sleep(2)
        with pytest.raises(CredentialsError, match="no valid AWS credentials for 5 minutes: loading") as caught:
            await cache.current()
        assert (caught.value.may_pass, caught.value.exit_code) == (False, ExitCode.STOPPED)
        assert type(call_error(caught.value)) is FatalCallError
        provider.is_broken = False
        await anyio.sleep(1)
        assert (await cache.current()).access_key.startswith("KEY")
        provider.is_broken = True
        with pytest.raises(CredentialsError) as caught:
            await cache.renew(await cache.current())
        assert caught.value.may_pass, "five minutes anew"

    run_virtual(main)


def test_waiting_tasks_resume_and_share_one_reload() -> None:
    provider = Provider()
    said: list[str] = []

    async def main() -> None:
        cache = cache_of(provider)
        cache.on_wait = said.append
        refused = await cache.current()
        provider.is_broken = True
        with pytest.raises(CredentialsError):
            await cache.renew(refused)
        found: list[str] = []

        async def one() -> None:
            found.append((await cache.wait()).access_key)

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
            await anyio.sleep(240)
            assert provider.look_ups < 250, "one a second at most, whoever asks"
            provider.is_broken = False
        assert len(set(found)) == 1
        assert anyio.current_time() < 246

    run_virtual(main)
    assert len(said) == 1
    assert "/opt/keys" in said[0]


def test_waiting_fails_after_five_minutes() -> None:
    provider = Provider()

    async def main() -> float:
        cache = cache_of(provider)
        refused = await cache.current()
        provider.is_broken = True
        with pytest.raises(CredentialsError):
            await cache.renew(refused)
        with pytest.raises(CredentialsError, match="for 5 minutes"):
            await cache.wait()
        return anyio.current_time()

    assert MAX_FAILING_S <= run_virtual(main) < MAX_FAILING_S + 6


def test_refused_keys_may_fail_for_five_minutes() -> None:
    """Keys that were never accepted are wrong; those that were accepted have expired."""

    async def main() -> None:
        cache = cache_of(lambda: "KEY")
        await cache.current()
        assert cache.refused("rekognition", "ExpiredToken: x") is None
        cache.accepted("rekognition")
        cache.accepted("s3")
        first = cache.refused("rekognition", "ExpiredToken: x")
        assert first is not None
        assert first.may_pass
        await anyio.sleep(MAX_FAILING_S - 1)
        cache.accepted("s3")
        again = cache.refused("rekognition", "ExpiredToken: x")
        assert again is not None
        assert again.may_pass
        await anyio.sleep(2)
        last = cache.refused("rekognition", "ExpiredToken: x")
        assert last is not None
        assert not last.may_pass
        assert str(last) == (
            "no valid AWS credentials for 5 minutes: rekognition refuses the AWS credentials: ExpiredToken: x; check "
            "the profile, or log in again"
        )
        cache.accepted("rekognition")
        anew = cache.refused("rekognition", "ExpiredToken: x")
        assert anew is not None
        assert anew.may_pass

    run_virtual(main)


def test_explicit_keys_never_change() -> None:
    async def main() -> None:
        cache = FixedCredentials("AKID", SECRET)
        keys = await cache.current()
        cache.accepted("rekognition")
        assert await cache.renew(keys) is keys
        assert cache.refused("rekognition", "x") is None

    anyio.run(main)


# --- rotation -------------------------------------------------------------------------------------------------------


def write_keys(path: Path, key: str) -> None:
    (path / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")


def test_keys_rotated_in_their_file_are_used_within_seconds(tmp_path: Path) -> None:
    write_keys(tmp_path, "OLD")

    async def main() -> None:
        cache = Aws().credentials
        assert (await cache.current()).access_key == "OLD"
        write_keys(tmp_path, "NEWER")
        assert (await cache.current()).access_key == "OLD"
        await anyio.sleep(6)
        assert (await cache.current()).access_key == "NEWER"
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id = HALF")
        await anyio.sleep(6)
        assert (await cache.current()).access_key == "NEWER", "a file that is just being written"
        write_keys(tmp_path, "LAST")
        await anyio.sleep(6)
        assert (await cache.current()).access_key == "LAST"

    run_virtual(main)


def key_of(authorization: str) -> str:
    return authorization.partition("Credential=")[2].partition("/")[0]


def knowing(known: set[str], server: RawServer, *, code: str, ok: bytes) -> None:
    """Make a server refuse all keys other than `known`."""
    refused = error(400, code)
    server.answers = lambda _, asked: ok if key_of(asked.headers["authorization"]) in known else refused


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Any:
    return partial(monkeypatch.setenv, "AWS_ENDPOINT_URL")


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"])
def test_an_sdk_client_reloads_refused_keys(code: str, tmp_path: Path, endpoint: Any) -> None:
    """Also for a start, which is sent once: a refusal for the keys has started nothing."""
    write_keys(tmp_path, "OLD")

    async def main() -> list[str]:
        async with answering() as server:
            endpoint(server.url)
            known = {"OLD"}
            knowing(known, server, code=code, ok=http(200, b"{}"))
            async with Aws().rekognition(region="us-east-1") as client:
                await client.describe_projects()
                write_keys(tmp_path, "NEW")
                known.clear()
                known.add("NEW")
                await client.start_project_version(ProjectVersionArn=MODEL.text, MinInferenceUnits=1)
            return [key_of(asked.headers["authorization"]) for asked in server.asked]

    assert anyio.run(main) == ["OLD", "OLD", "NEW"]


def test_an_sdk_client_waits_for_valid_keys(tmp_path: Path, endpoint: Any) -> None:
    """The new keys of a rotation arrive after the old ones have expired."""
    write_keys(tmp_path, "OLD")

    async def main() -> None:
        async with answering() as server:
            endpoint(server.url)
            known = {"OLD"}
            knowing(known, server, code="UnrecognizedClientException", ok=http(200, b"{}"))
            async with Aws().rekognition(region="us-east-1") as client:
                await client.describe_projects()
                known.clear()
                async with anyio.create_task_group() as group:
                    group.start_soon(client.describe_projects)
                    await anyio.sleep(200)
                    known.add("NEW")
                    write_keys(tmp_path, "NEW")
                known.clear()
                with pytest.raises(CredentialsError, match="no valid AWS credentials for 5 minutes"):
                    await client.describe_projects()

    run_virtual(main, grace_s=0.02)


def test_keys_that_were_never_valid_fail_at_once(tmp_path: Path, endpoint: Any) -> None:
    write_keys(tmp_path, "BAD")

    async def main() -> int:
        async with answering(error(400, "UnrecognizedClientException")) as server:
            endpoint(server.url)
            async with Aws().rekognition(region="us-east-1") as client:
                with pytest.raises(ClientError, match="UnrecognizedClientException"):
                    await client.describe_projects()
            return len(server.asked)

    assert anyio.run(main) == 2


@pytest.mark.parametrize("transport", list(Transport))
def test_a_call_with_refused_keys_is_repeated_or_waits(transport: Transport, tmp_path: Path, endpoint: Any) -> None:
    write_keys(tmp_path, "OLD")

    async def main() -> None:
        async with answering() as server:
            endpoint(server.url)
            known = {"OLD"}
            knowing(known, server, code="ExpiredTokenException", ok=http(200, b'{"CustomLabels": []}'))
            async with open_detector(Aws(), MODEL, transport=transport, reader=FileReader()) as detector:
                await detector.detect(IMAGE)
                known.clear()
                with pytest.raises(CredentialsFailingError, match="rekognition refuses the AWS credentials: Expired"):
                    await detector.detect(IMAGE)
                await anyio.sleep(MAX_FAILING_S - 1)
                with pytest.raises(CredentialsFailingError):
                    await detector.detect(IMAGE)
                known.add("NEW")
                write_keys(tmp_path, "NEW")
                await detector.detect(IMAGE)
                known.clear()
                with pytest.raises(CredentialsFailingError):
                    await detector.detect(IMAGE)
                await anyio.sleep(MAX_FAILING_S + 1)
                with pytest.raises(FatalCallError, match="for 5 minutes") as caught:
                    await detector.detect(IMAGE)
                assert isinstance(caught.value.__cause__, CredentialsError)

    run_virtual(main, grace_s=0.02)


# --- threads --------------------------------------------------------------------------------------------------------


def test_threads_get_the_same_keys_with_a_loop_and_without(tmp_path: Path) -> None:
    write_keys(tmp_path, "KEY")
    found: list[str] = []

    def take(cache: CredentialCache) -> None:
        cache._refresh_at = 0.0
        found.append(cache.current_blocking().access_key)

    async def main() -> None:
        cache = Aws().credentials
        take(cache)  # as in a notebook, whose event loop runs in this thread
        await cache.current()
        await anyio.to_thread.run_sync(take, cache)
        foreign = threading.Thread(target=take, args=(cache,))
        foreign.start()
        await anyio.to_thread.run_sync(foreign.join)

    take(Aws().credentials)
    anyio.run(main)
    assert found == ["KEY"] * 4


def test_a_client_of_boto3_signs_with_the_caches_keys(tmp_path: Path) -> None:
    write_keys(tmp_path, "OLD")
    aws = Aws(AwsSettings(region="us-east-1"))
    client = aws.blocking_s3()
    assert client._get_credentials().get_frozen_credentials().access_key == "OLD"
    (tmp_path / "credentials").unlink()
    with pytest.raises(CredentialsError, match="no AWS credentials found"):
        Aws(AwsSettings(region="us-east-1")).blocking_s3().list_buckets()


def test_keys_close_to_expiry_are_refreshed(tmp_path: Path) -> None:
    """Keys are refreshed 15 minutes before they expire, and kept if that fails."""
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)).isoformat()
    script = tmp_path / "keys.sh"
    calls = tmp_path / "calls"
    script.write_text(
        f"echo >> {calls}\n"
        f'printf \'{{"Version":1,"AccessKeyId":"KEY%d","SecretAccessKey":"s","SessionToken":"t",'
        f'"Expiration":"{soon}"}}\' $(wc -l < {calls})\n'
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = /bin/sh {script}\n")

    async def main() -> None:
        cache = Aws().credentials
        first = await cache.current()
        assert await cache.current() is first
        await anyio.sleep(6)
        second = await cache.current()
        assert second != first
        script.write_text("echo Please log in")
        await anyio.sleep(6)
        assert await cache.current() is second

    run_virtual(main, grace_s=0.5)

"""A proxy that enforces an IAM policy in front of the fake AWS servers, and records the permissions that were needed.

An action is allowed if a statement names it together with the resource (IAM user guide). The actions and resources of
each request follow the Service Authorization Reference. DetectCustomLabels reads images from S3 with the caller's
permissions.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ACCOUNT = "123456789012"
REGION = "us-east-1"
SCHEDULES = {"POST": "CreateSchedule", "PUT": "UpdateSchedule", "DELETE": "DeleteSchedule", "GET": "GetSchedule"}
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Need:
    """A permission that a request needs; `passed_to` is the service to which it passes a role."""

    action: str
    resource: str
    passed_to: str = ""


@dataclass(frozen=True)
class Policy:
    """Allow statements; Deny is not supported."""

    statements: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, text: str) -> Policy:
        document = json.loads(text)
        assert document["Version"] == "2012-10-17"
        return cls(tuple(document["Statement"]))

    def without(self, *sids: str) -> Policy:
        assert set(sids) <= {each["Sid"] for each in self.statements}
        return Policy(tuple(each for each in self.statements if each["Sid"] not in sids))

    @property
    def actions(self) -> set[str]:
        return {action for each in self.statements for action in listed(each["Action"])}

    def allows(self, need: Need) -> bool:
        return any(_fits(statement, need) for statement in self.statements)


@dataclass
class IamProxy:
    """Endpoints by service, the policy, and the permissions needed and denied; tests change them between commands."""

    endpoints: dict[str, str]
    policy: Policy
    needed: set[Need] = field(default_factory=set)
    denied: list[Need] = field(default_factory=list)

    @property
    def actions(self) -> set[str]:
        return {need.action for need in self.needed}

    def env(self) -> dict[str, str]:
        """Environment variables that make SDKs use the proxy."""
        return {f"AWS_ENDPOINT_URL_{name.upper()}": endpoint for name, endpoint in self.endpoints.items()}

    def first_denied(self, needs: Iterable[Need]) -> Need | None:
        """Record the needs, and return the first one that the policy does not allow."""
        for need in needs:
            self.needed.add(need)
            if not self.policy.allows(need):
                self.denied.append(need)
                return need
        return None


def listed(value: str | list[str]) -> list[str]:
    """Return a list for a string or a list of strings."""
    return [value] if isinstance(value, str) else value


@contextmanager
def running_proxy(policy: Policy, **servers: str) -> Iterator[IamProxy]:
    """Run a proxy in front of `servers` (endpoints by service) during the block."""
    proxy = IamProxy({}, policy)
    running = []
    for service, upstream in servers.items():
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, service, upstream))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        proxy.endpoints[service] = f"http://127.0.0.1:{server.server_address[1]}"
        running.append(server)
    try:
        yield proxy
    finally:
        for server in running:
            server.shutdown()
            server.server_close()


def needs_of(service: str, method: str, path: str, target: str, body: bytes) -> list[Need]:
    """Return the permissions that a request needs."""
    if service == "s3":
        return list(_of_s3(method, path, body))
    if service == "scheduler":
        return list(_of_scheduler(method, path, body))
    if service == "sts":
        return []  # GetCallerIdentity needs no permission
    if service in {"cloudwatch", "sns"}:
        fields = parse_qs(body.decode())
        return [Need(f"{service}:{fields['Action'][0]}", fields.get("TopicArn", ["*"])[0])]
    operation = target.rpartition(".")[2]
    if service == "service_quotas":
        return [Need(f"servicequotas:{operation}", "*")]
    return list(_of_rekognition(operation, json.loads(body)))


def _of_s3(method: str, path: str, body: bytes) -> Iterator[Need]:
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    if method == "POST" and "delete" in query:  # many at a time
        for each in ET.fromstring(body).iter():
            if each.tag.endswith("Key"):
                yield Need("s3:DeleteObject", f"arn:aws:s3:::{bucket}/{each.text}")
        return
    if not key:
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket"}[method]
        yield Need(f"s3:{action}", f"arn:aws:s3:::{bucket}")
        return
    action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[method]
    if "versionId" in query:
        action += "Version"
    yield Need(f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}")


def _of_scheduler(method: str, path: str, body: bytes) -> Iterator[Need]:
    name = unquote(urlsplit(path).path).rpartition("/")[2]
    yield Need(f"scheduler:{SCHEDULES[method]}", f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/default/{name}")
    if method in {"POST", "PUT"}:
        yield Need("iam:PassRole", json.loads(body)["Target"]["RoleArn"], "scheduler.amazonaws.com")


def _of_rekognition(operation: str, needed: dict[str, Any]) -> Iterator[Need]:
    arns = list(_arns(needed))
    if operation == "CreateProject":
        arns = [f"arn:aws:rekognition:{REGION}:{ACCOUNT}:project/{needed['ProjectName']}/1700000000000"]
    for arn in arns or ["*"]:
        yield Need(f"rekognition:{operation}", arn)
    if operation == "DetectCustomLabels" and (image := needed["Image"].get("S3Object")):
        action = "s3:GetObjectVersion" if "Version" in image else "s3:GetObject"
        yield Need(action, f"arn:aws:s3:::{image['Bucket']}/{image['Name']}")


def _arns(value: Any, key: str = "") -> Iterator[str]:
    """Yield every ARN in a request."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _arns(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _arns(item, key)
    elif key.endswith("Arn"):
        yield value


def _fits(statement: Mapping[str, Any], need: Need) -> bool:
    assert statement["Effect"] == "Allow"
    for operator, keys in statement.get("Condition", {}).items():
        assert (operator, list(keys)) == ("StringEquals", ["iam:PassedToService"]), "an unsupported condition"
        if need.passed_to not in listed(keys["iam:PassedToService"]):
            return False
    return any(fnmatch.fnmatchcase(need.action, pattern) for pattern in listed(statement["Action"])) and any(
        fnmatch.fnmatchcase(need.resource, pattern) for pattern in listed(statement["Resource"])
    )


def _handler(proxy: IamProxy, service: str, upstream: str) -> type[BaseHTTPRequestHandler]:
    where = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.headers.get("X-Amz-Target", "")
            denied = proxy.first_denied(needs_of(service, self.command, self.path, target, body))
            if denied is not None:
                self._refuse(denied)
                return
            with closing(http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)) as connection:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # Host too: it is signed
                    if name.lower() not in HOP_BY_HOP | {"expect"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                response = connection.getresponse()
                data = response.read()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self._end(data, length)

        def _refuse(self, need: Need) -> None:
            message = f"User is not authorized to perform: {need.action} on resource: {need.resource}"
            if service == "s3":
                data = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>".encode()
            else:
                data = json.dumps({"__type": "AccessDeniedException", "Message": message}).encode()
            self.send_response_only(403 if service in {"s3", "scheduler"} else 400)
            self.send_header("x-amzn-ErrorType", "AccessDeniedException")
            self._end(b"" if self.command == "HEAD" else data, str(len(data)))

        def _end(self, data: bytes, length: str | None) -> None:
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler

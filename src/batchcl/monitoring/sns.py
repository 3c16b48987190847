"""The back end that publishes documents to an SNS topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.errors import error_code, error_message
from batchcl.aws.session import Aws
from batchcl.errors import BatchclError
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError
from batchcl.monitoring.targets import redact, topic_region

__all__ = ["SnsTopic"]

_MAX_SUBJECT: Final = 99
"""SNS accepts subjects below 100 characters of printable ASCII."""


class SnsTopic:
    """Publishes the document to a topic, with its event and severity as attributes for filter policies."""

    every_s = None

    def __init__(self, topic: str, session: Callable[[], Aws]) -> None:
        self.name = f"the SNS topic {topic}"
        self._topic = topic
        self._session = session
        self._client: Any = None

    def send(self, report: Report) -> None:
        """Publish the document, if there is one."""
        if report.document is None:
            return
        try:
            if self._client is None:
                self._client = self._session().blocking_sns(region=topic_region(self._topic))
            self._client.publish(
                TopicArn=self._topic,
                Subject=_subject(report.text),
                Message=orjson.dumps(report.document, option=orjson.OPT_INDENT_2).decode(),
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": str(report.document[name])}
                    for name in ("event", "severity")
                },
            )
        except ClientError as error:
            raise SendError(redact(f"{error_code(error)}: {error_message(error)}")) from error
        except (BotoCoreError, BatchclError) as error:
            raise SendError(redact(str(error))) from error


def _subject(text: str) -> str:
    ascii_text = "".join(each if " " <= each <= "~" else "?" for each in text)
    return ascii_text if len(ascii_text) <= _MAX_SUBJECT else f"{ascii_text[: _MAX_SUBJECT - 3]}..."

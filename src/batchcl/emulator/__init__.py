"""A local Custom Labels service that really trains and detects.

boto3, the AWS CLI and batchcl itself call it like Amazon Rekognition: requests and responses follow botocore's model
of the service, each request's signature is checked, calls over a quota or the model's capacity are refused, and a
model learns from the pixels and labels that it is given. It listens on a loopback address only.

`running` starts one for the time of a `with` or `async with` block.
"""

from batchcl.emulator.process import Emulator, EmulatorContext, running
from batchcl.emulator.settings import ACCOUNT, EmulatorSettings

__all__ = ["ACCOUNT", "Emulator", "EmulatorContext", "EmulatorSettings", "running"]

"""A local Custom Labels service that really trains and detects.

Real clients (boto3, the aws command line, batchcl itself) speak to it as they would to Amazon Rekognition: inputs
and outputs follow botocore's model of the service, every request's signature is checked, capacity and quotas refuse
what the service would refuse, and a model learns from the pixels and labels it is given. It listens on loopback only.

`batchcl.emulator.process.running_emulator` runs one for the time of an `async with`.
"""

from batchcl.emulator.settings import ACCOUNT, EmulatorSettings

__all__ = ["ACCOUNT", "EmulatorSettings"]

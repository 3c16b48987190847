"""Wheel and sdist, installed as users do: every command works, or names the missing extra in the installer's words."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcl.cli.commands import COMMANDS
from installed.installations import ATTEMPTS, INSTALLERS, PROVIDED, install, install_lowest
from servers import Demo, aws_env, client, make_bucket, serving, start_model

ROOT = Path(__file__).parents[2]
IN_THE_WORDS_OF = {
    "pip": "pip install 'batchcl[{}]'",
    "uv": "uv pip install 'batchcl[{}]'",
    "uv tool": "uv tool install 'batchcl[{}] @ {}'",
    "pipx": "pipx install --force 'batchcl[{}] @ {}'",
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def given(
    demo: Demo, clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, object], dict[str, str]]]:
    """The words that replace the placeholders of the commands, and the environment of a user with an emulator."""
    folder = tmp_path_factory.mktemp("given")
    flags = ("--control-tps", 100, "--tps-per-unit", 1000, "--account-tps", 1000, "--cached-inference")
    with serving(clean_env, *flags, state=demo.state) as endpoint:
        start_model(endpoint, demo.arn)
        env = clean_env | aws_env(endpoint) | {"AWS_ENDPOINT_URL_STS": endpoint}
        line = f"run {demo.data.images} --model {demo.arn} --out {folder / 'out'}"
        for run_id in ("a", "b"):
            subprocess.run(
                [sys.executable, "-m", "batchcl", *shlex.split(line), "--run-id", run_id],
                env=env,
                check=True,
                capture_output=True,
            )
        names = {
            "images": demo.data.images,
            "image": next(demo.data.images.iterdir()),
            "truth": demo.data.truth,
            "arn": demo.arn,
            "root": folder / "out",
        }
        yield names, env


@pytest.mark.parametrize("extra", PROVIDED)
@pytest.mark.parametrize("installer", INSTALLERS)
def test_every_command_works_or_names_its_extra(installer, extra, archives, given, demo, clean_env, tmp_path):
    (names, env), archive = given, archives["wheel"]
    installation = install(installer, archive, extra, tmp_path, clean_env)
    assert {name.split()[0] for name in installation.every_command()} == set(COMMANDS)
    new = installation.prefix / "new"
    new.mkdir()
    state = shutil.copytree(demo.state, new / "state")
    for needed, line in ATTEMPTS:
        if extra and not needed:
            continue  # the same as without extras
        words = shlex.split(line.format(**names, new=new, state=state))
        done = installation.run(["batchcl", *words], env={k: v for k, v in env.items() if k != "PATH"})
        where = f"{installer}, [{extra}]: batchcl {shlex.join(words)}\n{done.err}"
        if not needed or needed in PROVIDED[extra]:
            assert done.code == 0, where
        else:
            extras = ",".join(sorted({needed, *([extra] if extra and installer in {"uv tool", "pipx"} else [])}))
            assert done.code == 2, where
            assert done.err.endswith(f" with: {IN_THE_WORDS_OF[installer].format(extras, archive.as_uri())}\n"), where


@pytest.mark.parametrize("installer", INSTALLERS)
def test_the_printed_command_adds_the_extra(installer, archives, given, clean_env, tmp_path):
    """The first installation is the sdist with an extra, which is kept."""
    names, env = given
    installation = install(installer, archives["sdist"], "analysis", tmp_path, clean_env)
    more = {name: value for name, value in env.items() if name != "PATH"}
    report = ["batchcl", "report", str(names["root"]), "--out", str(tmp_path / "report.html")]
    refused = installation.run(report, env=more)
    assert refused.code == 2, refused.err
    installation.shell(refused.err.partition(" with: ")[2])
    written = installation.run(report, env=more)
    assert written.code == 0, written.err
    assert installation.run(["batchcl", "compare", str(names["root"]), "a", "b"], env=more).code == 0


def test_the_lowest_versions_of_all_dependencies_suffice(archives, given, demo, seaweed, clean_env, tmp_path):
    names, env = given
    make_bucket(client("s3", seaweed), "lowest")
    env = env | {"AWS_ENDPOINT_URL_S3": seaweed}
    in_s3 = ("run {images} --model {arn} --out s3://lowest/root --limit 3", "labels s3://lowest/root")
    installation = install_lowest(archives["wheel"], ROOT / "pyproject.toml", tmp_path, clean_env)
    assert {name.split()[0] for name in installation.every_command()} == set(COMMANDS)
    state = shutil.copytree(demo.state, tmp_path / "state")
    for line in (*(line for _, line in ATTEMPTS), *in_s3):
        words = shlex.split(line.format(**names, new=tmp_path, state=state))
        done = installation.run(["batchcl", *words], env={k: v for k, v in env.items() if k != "PATH"})
        assert done.code == 0, f"batchcl {shlex.join(words)}\n{done.err}"

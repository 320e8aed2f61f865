"""README says what works: every command and program in it is run or checked, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.runtime import image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EMOJI = ROOT / "bundles" / "emoji-ldm"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every line of every ``sh`` block, as words."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


RUNNABLE = [words for words in commands() if words[0] == "sfumato" and words[1] != "export"]
EXPORTS = [words for words in commands() if words[:2] == ["sfumato", "export"]]


@pytest.fixture(params=["tiny", pytest.param("emoji", marks=pytest.mark.slow)])
def checkout(request, tmp_path, tiny_ldm, cold_bundle) -> Path:
    """A folder that looks as the README supposes, with tiny bundles in the place of the tracked ones, or with those."""
    tiny = request.param == "tiny"
    if not tiny and not EMOJI.is_dir():
        pytest.skip("bundles/emoji-ldm is not in this checkout")
    (tmp_path / "bundles").mkdir()
    for name, stand_in in (("emoji-ldm", tiny_ldm), ("cold-blur", cold_bundle)):
        (tmp_path / "bundles" / name).symlink_to(stand_in if tiny else ROOT / "bundles" / name)
    images = tmp_path / "docs" / "images"
    images.mkdir(parents=True)
    for name in ("mask.png", "red_apple.png"):
        picture = image.read(ROOT / "docs" / "images" / name)
        image.write(images / name, picture[::4, ::4] if tiny else picture)
    return tmp_path


def needs_gradient(checkout: Path, text: str) -> bool:
    """Whether `text` edits along a direction, which only the tracked bundle can."""
    bundle = checkout / "bundles" / "emoji-ldm"
    return any(w in text for w in ("--source-word", "--direction", "source_word")) and bundle.resolve() != EMOJI


def test_only_commands_that_are_checked_here():
    assert commands()
    assert {words[0] for words in commands()} <= {"make", "sfumato", "pip"}


def test_every_command_of_sfumato_runs(checkout):
    """In their order, in one folder: later ones use what earlier ones wrote."""
    for words in RUNNABLE:
        if needs_gradient(checkout, " ".join(words)):
            continue
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        if "-o" in words and "--num-images" not in words:
            assert (checkout / words[words.index("-o") + 1]).is_file()


def test_every_program_runs(checkout):
    for program in blocks("python"):
        if needs_gradient(checkout, program):
            continue
        subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=checkout, check=True, capture_output=True)


@pytest.mark.parametrize("words", EXPORTS, ids=" ".join)
def test_the_export_command_takes_these_options(words):
    command = [sys.executable, "-m", *words[:3], "--help"]
    known = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [w for w in words if w.startswith("--") and f"{w} " not in known] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", EXPORTS, ids=" ".join)
def test_the_export_command_runs(words, goldens, tmp_path):
    pytest.importorskip("torch")
    for suffix in ("ckpt", "yaml"):
        (tmp_path / f"model.{suffix}").symlink_to(goldens.path(f"ldm_t2i_kl_xattn.{suffix}"))
    for command in (words, ["sfumato", "verify", words[words.index("--out") + 1]]):
        line = [sys.executable, "-m", *command]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_every_make_target_exists():
    named = {w for words in commands() if words[0] == "make" for w in words[1:]}
    named |= set(re.findall(r"`make ([a-z-]+)`", README))
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert named
    assert named <= rules


def test_ci_calls_what_readme_names():
    called = set(re.findall(r"make ([a-z-]+)", (ROOT / ".ci" / "run").read_text()))
    assert called <= set(re.findall(r"make ([a-z-]+)", README))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_what_to_do_for_every_target():
    """A dry run, so that a rule which cannot be parsed or a missing prerequisite shows."""
    for target in ("demo", "test", "check", "bench", "test-all", "test-installed"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_extra_that_is_named_exists():
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    named = {name for group in re.findall(r"\.\[([a-z,]+)\]", README) for name in group.split(",")}
    named |= {match for match in re.findall(r"\| `([a-z]+)` \|", README)}
    assert named
    assert named <= extras


@pytest.mark.parametrize("path", sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")}))
def test_every_link_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    broken = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not broken

"""What is said of arguments in Python is said of options on the command line; other words stay."""

from __future__ import annotations

import pytest
from command_output import words

from sfumato.cli.wording import as_options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt was given; give a PROMPT"),
        (["--class", "3"], "and --class was given; give a PROMPT"),
        (["cat", "--tokens", "1,2"], "and --tokens was given; give a PROMPT"),
        (["cat", "--size", "256", "--tile", "100"], "pass such a one, or leave --tile out"),
        (["cat", "--size", "4096x64"], "use a smaller one, or pass --tile 64"),
        (["cat", "--fused"], "leave --fused out, or add the network"),
    ],
)
def test_generate_names_its_options(run, tiny_ldm, arguments, message):
    result = run("generate", tiny_ldm, *arguments, "--steps", "1")
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("…; pass size=(192, 256)", "…; pass --size 256x192"),
        ("…; resize to size=(16, 16)", "…; resize to --size 16x16"),
        ("no label was given; pass label=…", "no label was given; give --class NUMBER"),
        ("a prompt was given; pass label", "a prompt was given; give --class NUMBER"),
        ("pass neither prompt nor label", "give neither PROMPT nor --class"),
        ("pass second=PICTURE", "pass --second PICTURE"),
        ("pass guidance_scale=1", "pass --guidance-scale 1"),
        ("use backend='torch', or attention_guidance=0", "use --backend torch, or --attention-guidance 0"),
        ("pass source_word='cat' and target_word='dog'", "pass --source-word 'cat' and --target-word 'dog'"),
        ("blur lacks steps; pass steps=NUMBER", "blur lacks steps; pass steps=NUMBER"),  # of -p NAME=VALUE
    ],
)
def test_messages_are_reworded(said, wanted):
    assert as_options(said) == wanted


def test_help_says_what_is_true_of_each_verb(run):
    helps = {verb: words(run(verb, "--help")) for verb in ("generate", "edit", "inpaint", "upscale")}
    for text in ("-2^63 to 2^64-1", "1 to the timesteps of the bundle", "0 to 1000; 1 and below is none", "1 or more"):
        assert text in helps["generate"]
    assert "Size in pixels. [default: (the bundle's)]" in helps["generate"]
    assert "1 keeps nothing but its size. [default: (0.75)]" in helps["edit"]
    assert "its longer side is the bundle's. [default: (the picture's)]" in helps["edit"]
    assert "Along a direction: what the picture shows. Without words or --direction: the same as" in helps["edit"]
    assert "Resize to this first. [default: (the picture's)]" in helps["inpaint"]
    assert "1 starts from noise alone. [default: (1)]" in helps["inpaint"]
    assert "[default: (the picture's, times the model's factor)]" in helps["upscale"]

"""What `coprocessor fs` says of observers and of models: settings as they are typed, and names that would have done."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

import coproc
from coproc.cli.fs_options import settings
from coproc.cli.fs_text import attached_text, setting

from . import fs_commands

client = fs_commands.client
cluster = fs_commands.cluster
fails = fs_commands.fails
fs = fs_commands.fs
works = fs_commands.works


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("accuracy", "metric=accuracy"),
        ("two words", "'metric=two words'"),
        ("*.safetensors", "'metric=*.safetensors'"),
        ("a=b", "metric=a=b"),
        (3, "metric=3"),
        ("3", "'metric=\"3\"'"),
        ("null", "'metric=\"null\"'"),
        ("", "metric="),
        (None, "metric=null"),
        ({"x": "int64"}, '\'metric={"x": "int64"}\''),
    ],
)
def test_a_setting_is_written_as_it_is_typed(value, typed):
    assert setting("metric", value) == typed
    assert settings(shlex.split(typed), "a setting") == {"metric": value}


def test_parameters_are_shown_as_they_were_given(client, works, fails):
    client.make_directory("/d")
    works("attach", "/d", "keep_best", "metric=accuracy", "keep=3")
    shown = works("observers")
    assert re.search(r"^  parameter +keep=3\n +metric=accuracy$", shown, re.MULTILINE), shown
    fails("needs the name of its metric, such as metric=accuracy", "attach", "/d", "keep_best", "--name", "b")
    fails("and keep=few was given", "attach", "/d", "keep_best", "metric=accuracy", "keep=few", "--name", "b")
    works("detach", "/d", "keep_best")


def test_who_takes_off_what_is_not_there_is_told_what_is(client, works, fails):
    client.make_directory("/d")
    client.make_directory("/e")
    fails("/d has no observer 'keepbest'; no observer is attached anywhere", "detach", "/d", "keepbest")
    works("attach", "/d", "keep_best", "metric=accuracy")
    works("attach", "/d", "keep_best", "metric=loss", "--name", "losses")
    fails("/d has no observer 'keepbest'; attached there: keep_best, losses$", "detach", "/d", "keepbest")
    fails("; attached elsewhere: keep_best of /d, losses of /d$", "detach", "/e", "keep_best")
    fails("nothing at /f; attached elsewhere: keep_best of /d", "detach", "/f", "keep_best")
    client.detach("/d", "keep_best")
    assert attached_text(client.attachments(), "/d") == "attached there: losses"
    client.detach("/d", "losses")


def test_explains_a_model(client, works, cluster):
    with coproc.connect(cluster.address) as connected:
        model = connected.create_model("line", params={"w": np.zeros(4)}, optimizer=coproc.optim.SGD(0.1))
        shown = " ".join(works("explain", "/models/line/model.safetensors").split())
        assert "read virtual: made by an observer when it is opened" in shown
        assert "the observer model of /models makes it when it is opened, now" in shown
        size_bytes = client.stat("/models/line/model.safetensors").size_bytes
        assert f"now {size_bytes} bytes" in shown
        missing = " ".join(works("explain", "/models/line/weights.safetensors").split())
        assert "read nowhere" in missing
        assert "the observer model of /models was asked, and does not make it" in missing
        assert "read nothing: only files have bytes" in " ".join(works("explain", "/models/line").split())
        model.delete()

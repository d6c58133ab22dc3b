"""The configuration tree: what the project ships is valid, and each fault is one sentence."""

import pytest

from eavatar.errors import UserError
from eavatar.settings import Config, GenerateSettings, merge, parse_block, read_config, select
from tests.scenes import CONFIG


def test_shipped_configurations_are_valid():
    real = read_config(CONFIG / "config.yaml")
    demo = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    assert demo.splat.steps < real.splat.steps
    paper = read_config(CONFIG / "config.yaml", CONFIG / "paper.yaml")
    # Sec. 4.3 of the paper; config.yaml has fewer steps of stage II
    assert (paper.sdf.steps, paper.sdf.timesteps_per_step, paper.splat.steps) == (
        10_000,
        4,
        500_000,
    )
    assert (paper.splat.upsampler, real.splat.steps) == ("gha", 40_000)
    assert (real.splat.control.threshold, real.splat.split.threshold) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sdf: {stepps: 3}", "unknown setting 'sdf.stepps'"),
        ("splat: {steps: -1}", "setting 'splat.steps': input should be greater"),
        ("havatar: {image_size: 32}", "setting 'havatar.patch': .*at most image_size"),
        ("capture: {matte: {backend: magic}}", "setting 'capture.matte.backend'"),
        ("seeds: [1, 1]", r"'seeds': each seed must stand once, not \[1, 1\]"),
        (f"seeds: [{2**63}]", r"setting 'seeds\.0': input should be less"),  # PyTorch's are
        ("capture: {ingest: {held_out: []}}", r"held_out_cameras must be set\.$"),
        ("splat: {image_size: 4096}", "'splat': its image_size 4096 is larger .* 2048; lower"),
        ("capture: {ingest: {image_size: 128}}", "'sdf': its image_size 256 is larger .* 128; low"),
        ("splat: {compile: true}", "'splat.compile' has moved to 'splat.run.compile'"),
        ("sdf: {steps: 0, frames_per_step: 1}", "moved to 'sdf.timesteps_per_step'"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_fault_is_one_sentence_that_names_it(tmp_path, text, sentence):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_config(CONFIG / "config.yaml", overlay)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named():
    with pytest.raises(UserError, match="'subjects' is missing"):
        parse_block(Config, "{}")


def test_an_overlay_without_its_base_is_told_what_goes_before_it():
    with pytest.raises(UserError, match=r"open\.yaml: .* name config/config.yaml, .* before"):
        read_config(CONFIG / "open.yaml")


def test_block_from_json_and_from_file(tmp_path):
    block = parse_block(GenerateSettings, '{"source": "template"}')
    path = tmp_path / "generate.yaml"
    path.write_text("source: template\n")
    assert parse_block(GenerateSettings, str(path)) == block


def test_merge_goes_into_mappings_and_replaces_lists():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}, "d": 4}
    assert base["a"]["c"] == [1, 2]


def test_select_keeps_order_and_excludes():
    names = ["EXP-6-tongue-1", "EXP-5-mouth", "FREE", "GLASSES"]
    assert select(names, ["EXP-*", "FREE"], ["*tongue*"]) == ["EXP-5-mouth", "FREE"]

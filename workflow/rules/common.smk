"""What all stages share: the sample sheet, settings of a subject, paths that depend on both.

Everything is checked here, when the workflow is parsed, before any job runs.
"""

import json
import os
import re
import shlex
import sys
from functools import reduce
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from eavatar.errors import UserError
from eavatar.preflight.subjects import (
    check_requested,
    list_sequences,
    read_subjects,
    subject_config,
    variant_configs,
)
from eavatar.settings import merge, read_yaml

# In the order of the file: Snakemake puts what the command line adds first, and the order of the
# variants decides whose stage I is shared.
SETTINGS = merge(read_yaml(Path(workflow.configfiles[-1])), config)

try:
    SUBJECTS = read_subjects(Path(config["subjects"]))
    CONFIGS = {
        name: subject_config(
            subject, SETTINGS, workflow.config_settings.overwrite_config
        )
        for name, subject in SUBJECTS.items()
    }
    VARIANTS = {
        name: variant_configs(
            subject, SETTINGS, workflow.config_settings.overwrite_config
        )
        for name, subject in SUBJECTS.items()
    }
    if workflow.is_main_process:
        check_requested(sys.argv[1:], SUBJECTS, CONFIGS, Path(config["subjects"]))
    SEQUENCES = {
        name: list_sequences(subject, CONFIGS[name])
        for name, subject in SUBJECTS.items()
    }
except UserError as error:
    doctor = f"python -m eavatar doctor --subjects {config['subjects']}"
    sys.exit(f"eavatar: {error} All faults at once: {doctor}")


wildcard_constraints:
    subject="|".join(map(re.escape, SUBJECTS)),
    sequence="|".join(
        {re.escape(name) for names in SEQUENCES.values() for name in names}
    ),
    variant="|".join({re.escape(name) for names in VARIANTS.values() for name in names}),


def configuration(wildcards):
    """The settings of a job: those of its variant, where its rule has variants."""
    variant = wildcards.get("variant")
    configs = VARIANTS[wildcards.subject]
    return configs[variant] if variant else CONFIGS[wildcards.subject]


def block(path):
    """A function of wildcards: the job's settings at a dotted path, as JSON.

    How a training is carried out is left out: `run_settings` passes it on.
    """

    def settings(wildcards):
        part = configuration(wildcards)
        for name in path.split("."):
            part = getattr(part, name)
        return (
            part.model_dump_json(exclude={"run"})
            if hasattr(part, "model_dump_json")
            else json.dumps(part)
        )

    return settings


def run_settings(stage):
    """A function of wildcards: how a training is carried out, as JSON.

    It asks for the threads, of which Snakemake takes no note in deciding what to run again: so a
    change of these settings reruns nothing (tests/test_pipeline.py holds it to that).
    """

    def settings(wildcards, threads):
        return getattr(configuration(wildcards), stage).run.model_dump_json()

    return settings


def raw(wildcards):
    """The raw capture, generated or the user's."""
    return str(
        SUBJECTS[wildcards.subject].capture or f"results/{wildcards.subject}/raw"
    )


def recording(wildcards):
    """What must be there before a capture is checked: the generated videos, or the folder."""
    capture = SUBJECTS[wildcards.subject].capture
    return str(capture or f"results/{wildcards.subject}/raw/sequences")


def provided(column):
    """A function of wildcards: the sheet's file, else the generated one, else no input."""

    def place(wildcards):
        return provided_file(wildcards.subject, column) or []

    return place


def optional(column, flag=None):
    """A function of wildcards: ``--flag file`` for the command line, or nothing without a file."""

    def text(wildcards):
        path = provided_file(wildcards.subject, column)
        return f"--{flag or column} {shlex.quote(str(path))}" if path else ""

    return text


def provided_file(subject, column):
    """What the sheet's column names, or the part of a generated capture that stands for it."""
    given = getattr(SUBJECTS[subject], column)
    generated = {"morphable_model": "morphable_model.h5", "landmarks": "landmarks"}
    if given is None and SUBJECTS[subject].capture is None and column in generated:
        return f"results/{subject}/raw/{generated[column]}"
    return given


def morphable_model(wildcards):
    """The subject's morphable model: from the sheet, generated, or the configured one."""
    given = provided_file(wildcards.subject, "morphable_model")
    return given or CONFIGS[wildcards.subject].morphable_model


def gpus(path):
    """A function of wildcards: how many GPUs the backend uses that the block at a path chooses."""

    def count(wildcards):
        chosen = reduce(getattr, path.split("."), CONFIGS[wildcards.subject]).chosen
        return int(chosen.gpu != "unused")

    return count


def input_folder(name):
    """A function of a job: the folder that holds the named input."""

    def folder(wildcards, input):
        return _parent(getattr(input, name))

    return folder


def output_folder(name):
    """A function of a job: the folder that holds the named output."""

    def folder(wildcards, output):
        return _parent(getattr(output, name))

    return folder


def _parent(paths):
    """The folder of a path, or of the first of several."""
    return str(Path(paths if isinstance(paths, str) else paths[0]).parent)


def every_sequence(pattern):
    """A function of wildcards: the pattern for each of the subject's sequences."""

    def paths(wildcards):
        return expand(
            pattern, subject=wildcards.subject, sequence=SEQUENCES[wildcards.subject]
        )

    return paths


def every_variant(pattern):
    """A function of wildcards: the pattern for each of the subject's variants."""

    def paths(wildcards):
        return expand(
            pattern, subject=wildcards.subject, variant=VARIANTS[wildcards.subject]
        )

    return paths


def variants(wildcards):
    """The names of the subject's variants."""
    return list(VARIANTS[wildcards.subject])


def avatars(subject):
    """The subject's variants that train an avatar, in the order of the settings."""
    variants = CONFIGS[subject].variants
    return [name for name, variant in variants.items() if variant.method == "avatar"]


def reported(wildcards):
    """The variant that the report page shows: the first avatar."""
    return avatars(wildcards.subject)[0]


def of_reported(pattern):
    """A function of wildcards: the pattern for the variant that the report page shows."""

    def path(wildcards):
        return expand(pattern, subject=wildcards.subject, variant=reported(wildcards))

    return path


def stage_one(wildcards):
    """Stage I that an avatar starts from: of the first that learns with the same settings."""
    learnt = {
        name: settings.sdf.model_dump(exclude={"run"})
        for name, settings in VARIANTS[wildcards.subject].items()
    }
    wanted = learnt[wildcards.variant]
    same = [name for name in avatars(wildcards.subject) if learnt[name] == wanted]
    return expand(
        rules.train_sdf.output.model,
        subject=wildcards.subject,
        variant=(same or [wildcards.variant])[0],
    )


def method(wildcards):
    """What draws the images of a variant."""
    return CONFIGS[wildcards.subject].variants[wildcards.variant].method


def drawn_from(wildcards):
    """The file whose change makes a variant's images new: the model, or the newest image."""
    folder = rendered_images(wildcards)
    if folder is None:
        return expand(rules.train_splat.output.model, **wildcards)
    images = Path(folder).rglob("*.png")
    return str(max(images, key=os.path.getmtime, default=folder))


def source(wildcards, input):
    """What a variant's method reads: the folder of the model, or that of the images."""
    return rendered_images(wildcards) or _parent(input.source)


def rendered_images(wildcards):
    """The folder of a variant's images that another code rendered, or None."""
    folder = CONFIGS[wildcards.subject].variants[wildcards.variant].images
    return folder and folder.replace("{subject}", wildcards.subject)

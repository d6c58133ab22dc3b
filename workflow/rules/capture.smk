"""Capture: raw videos to colour-corrected, cropped frames, cameras and masks.

in   a raw capture in the NeRSemble v2 layout (the sample sheet's, or generated)
out  capture/cameras.json, visible/<camera>.png, plates/<camera>.png
     capture/full_cameras.json   of the uncropped images at full size, for `score`
     capture/sequences.json   names of those to train on and those held out; all others are unused
     capture/<sequence>.csv                     timestep, camera, source_frame, sharpness
     capture/<sequence>/<camera>/<timestep>.jpg
     capture/masks/<sequence>.csv               timestep, camera, coverage, left, top, right, bottom,
                                                failed (1: never drawn in training nor evaluated)
     capture/masks/<sequence>/<camera>/<timestep>.png
     capture/masks/<sequence>/<camera>/background.jpg   the set behind the person, to be taken out of
                                                soft edges; none with capture.matte.foreground: none,
                                                or if all masks of the camera have failed
"""


rule demo_capture:
    output:
        calibration=directory("results/{subject}/raw/calibration"),
        sequences=directory("results/{subject}/raw/sequences"),
        morphable_model="results/{subject}/raw/morphable_model.h5",
        landmarks=directory("results/{subject}/raw/landmarks"),
        truth=directory("results/{subject}/truth"),
    log:
        "results/{subject}/logs/demo_capture.log",
    benchmark:
        "results/{subject}/benchmarks/demo_capture.tsv"
    conda:
        "../../envs/capture.yaml"
    threads: 8
    resources:
        mem_mb=growing(4000),
        disk_mb=2000,
        runtime=growing(30),
    params:
        settings=block("capture.demo"),
        seed=block("seed"),
        raw=output_folder("morphable_model"),
    shell:
        "python -m eavatar demo-capture --settings {params.settings:q} --seed {params.seed}"
        " --raw {params.raw:q} --truth {output.truth:q} 2>&1 | tee {log:q}"


rule doctor:
    log:
        "results/logs/doctor.log",
    params:
        settings=json.dumps(config),
        deployed=deployed,
    run:  # no environment of its own: it looks at the one that Snakemake was called from
        shell(
            "python -m eavatar doctor --config {params.settings:q} {params.deployed}"
            " 2>&1 | tee {log:q}"
        )


# Nothing of this rule is compared with its last run: which editions there are decides what is due.
rule check:
    input:
        calibration=generated("calibration"),
        sequences=generated("sequences"),
        morphable_model=generated("morphable_model"),
        landmarks=generated("landmarks"),
    output:
        update("results/{subject}/check/{edition}.txt"),
    log:
        "results/{subject}/logs/check/{edition}.log",
    retries: 0  # what is wrong with an input stays wrong
    conda:
        "../../envs/capture.yaml"
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        settings=not_compared(block("capture.ingest")),
        matte=not_compared(block("capture.matte")),
        landmark=not_compared(block("face.landmarks")),
        prior=not_compared(block("prior.generate")),
        prior_run=not_compared(block("prior.run")),
        deployed=not_compared(deployed),
        head_scale=not_compared(block("face.fit.head_scale")),
        backbones=not_compared(backbones),
        capture=not_compared(raw),
        morphable_model=not_compared(checked_model),
        landmarks=not_compared(optional("landmarks")),
        mattes=not_compared(optional("mattes")),
        mesh=not_compared(optional("prior", flag="mesh")),
        covered=not_compared(covered),
    shell:
        "python -m eavatar check --settings {params.settings:q}"
        " --matte-settings {params.matte:q} --landmark-settings {params.landmark:q}"
        " --prior-settings {params.prior:q} --prior-run-settings {params.prior_run:q}"
        " {params.deployed} --head-scale {params.head_scale:q}"
        " --backbones {params.backbones:q} --capture {params.capture:q}"
        " --morphable-model {params.morphable_model:q}"
        " {params.landmarks} {params.mattes} {params.mesh}"
        " --covered {params.covered:q} --output {output:q} 2>&1 | tee {log:q}"


rule choose_sequences:
    input:
        check=checked("choose_sequences"),
    output:
        "results/{subject}/capture/sequences.json",
    log:
        "results/{subject}/logs/choose_sequences.log",
    retries: 0  # what is wrong with an input stays wrong
    conda:
        "../../envs/capture.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        train=chosen("train"),
        test=chosen("test"),
    shell:
        "python -m eavatar choose-sequences --train {params.train:q} --test {params.test:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule calibrate:
    input:
        calibration=generated("calibration"),
        sequences=generated("sequences"),
        check=checked("calibrate"),
    output:
        cameras="results/{subject}/capture/cameras.json",
        full_cameras="results/{subject}/capture/full_cameras.json",
        visible=directory("results/{subject}/capture/visible"),
        plates=directory("results/{subject}/capture/plates"),
    log:
        "results/{subject}/logs/calibrate.log",
    retries: 0  # what is wrong with an input stays wrong
    conda:
        "../../envs/capture.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        settings=not_compared(ingest_block),  # checked("calibrate") compares
        capture=not_compared(raw),
        folder=output_folder("cameras"),
    shell:
        "python -m eavatar calibrate --settings {params.settings:q}"
        " --capture {params.capture:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule ingest:
    input:
        calibration=generated("calibration"),
        sequences=generated("sequences"),
        check=checked("ingest"),
    output:
        index="results/{subject}/capture/{sequence}.csv",
        frames=kept_or_not(directory("results/{subject}/capture/{sequence}")),
    log:
        "results/{subject}/logs/ingest/{sequence}.log",
    benchmark:
        "results/{subject}/benchmarks/ingest/{sequence}.tsv"
    conda:
        "../../envs/capture.yaml"
    threads: 4
    resources:
        mem_mb=growing(8000),
        disk_mb=20000,
        runtime=growing(120),
    params:
        settings=ingest_block,
        capture=not_compared(raw),
        folder=output_folder("index"),
    shell:
        "python -m eavatar ingest --settings {params.settings:q}"
        " --capture {params.capture:q} --sequence {wildcards.sequence:q}"
        " --output {params.folder:q} 2>&1 | tee {log:q}"


rule matte:
    input:
        index=rules.ingest.output.index,
        frames=rules.ingest.output.frames,
        plates=rules.calibrate.output.plates,
        visible=rules.calibrate.output.visible,
        full_cameras=rules.calibrate.output.full_cameras,
        mattes=provided("mattes"),
        check=checked("matte"),
    output:
        index=report(
            "results/{subject}/capture/masks/{sequence}.csv",
            caption="../report/capture.rst",
            category="capture",
            labels={"subject": "{subject}", "file": "masks of {sequence}"},
        ),
        masks=kept_or_not(directory("results/{subject}/capture/masks/{sequence}")),
    log:
        "results/{subject}/logs/matte/{sequence}.log",
    benchmark:
        "results/{subject}/benchmarks/matte/{sequence}.tsv"
    conda:
        "../../envs/capture.yaml"
    threads: 4
    resources:
        mem_mb=growing(8000),
        disk_mb=10000,
        runtime=growing(240),
        gpu=gpus("capture.matte"),
    params:
        settings=block("capture.matte"),
        ingest=ingest_block,
        mattes=flag("mattes"),
        capture=input_folder("index"),
        folder=output_folder("index"),
    shell:
        "python -m eavatar matte --settings {params.settings:q}"
        " --ingest-settings {params.ingest:q} --capture {params.capture:q}"
        " --sequence {wildcards.sequence:q} {params.mattes} --output {params.folder:q} 2>&1 | tee {log:q}"

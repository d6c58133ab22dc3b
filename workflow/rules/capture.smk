"""Capture: raw videos to colour-corrected, cropped frames, cameras and masks.

in   a raw capture in the NeRSemble v2 layout (the sample sheet's, or generated)
out  capture/cameras.json, visible/<camera>.png, plates/<camera>.png
     capture/full_cameras.json   of the uncropped images at full size, for `score`
     capture/<sequence>.csv                     timestep, camera, source_frame, split, sharpness
     capture/<sequence>/<camera>/<timestep>.jpg
     capture/masks/<sequence>.csv               timestep, camera, coverage, left, top, right, bottom,
                                                failed (1: never drawn in training nor evaluated)
     capture/masks/<sequence>/<camera>/<timestep>.png
"""


rule demo_capture:
    output:
        calibration="results/{subject}/raw/calibration/camera_params.json",
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
        mem_mb=4000,
        runtime=30,
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
    run:  # no environment of its own: it looks at the one that Snakemake was called from
        shell(
            "python -m eavatar doctor --config {params.settings:q} 2>&1 | tee {log:q}"
        )


rule check:
    input:
        recording=recording,
        morphable_model=morphable_model,
        landmarks=provided("landmarks"),
        mattes=provided("mattes"),
        mesh=provided("prior"),
    output:
        "results/{subject}/check.txt",
    log:
        "results/{subject}/logs/check.log",
    conda:
        "../../envs/capture.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=block("capture.ingest"),
        matte=block("capture.matte"),
        landmark=block("face.landmarks"),
        prior=block("prior.generate"),
        head_scale=block("face.fit.head_scale"),
        capture=raw,
        landmarks=optional("landmarks"),
        mattes=optional("mattes"),
        mesh=optional("prior", flag="mesh"),
    shell:
        "python -m eavatar check --settings {params.settings:q}"
        " --matte-settings {params.matte:q} --landmark-settings {params.landmark:q}"
        " --prior-settings {params.prior:q} --head-scale {params.head_scale:q} --capture {params.capture:q}"
        " --morphable-model {input.morphable_model:q}"
        " {params.landmarks} {params.mattes} {params.mesh} --output {output:q} 2>&1 | tee {log:q}"


rule calibrate:
    input:
        check=ancient(rules.check.output),
    output:
        cameras="results/{subject}/capture/cameras.json",
        full_cameras="results/{subject}/capture/full_cameras.json",
        visible=directory("results/{subject}/capture/visible"),
        plates=directory("results/{subject}/capture/plates"),
    log:
        "results/{subject}/logs/calibrate.log",
    conda:
        "../../envs/capture.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=block("capture.ingest"),
        capture=raw,
        folder=output_folder("cameras"),
    shell:
        "python -m eavatar calibrate --settings {params.settings:q}"
        " --capture {params.capture:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule ingest:
    input:
        check=ancient(rules.check.output),
    output:
        index="results/{subject}/capture/{sequence}.csv",
        frames=directory("results/{subject}/capture/{sequence}"),
    log:
        "results/{subject}/logs/ingest/{sequence}.log",
    benchmark:
        "results/{subject}/benchmarks/ingest/{sequence}.tsv"
    conda:
        "../../envs/capture.yaml"
    threads: 4
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        settings=block("capture.ingest"),
        capture=raw,
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
        mattes=provided("mattes"),
    output:
        index="results/{subject}/capture/masks/{sequence}.csv",
        masks=directory("results/{subject}/capture/masks/{sequence}"),
    log:
        "results/{subject}/logs/matte/{sequence}.log",
    benchmark:
        "results/{subject}/benchmarks/matte/{sequence}.tsv"
    conda:
        "../../envs/capture.yaml"
    threads: 4
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=gpus("capture.matte"),
    params:
        settings=block("capture.matte"),
        ingest=block("capture.ingest"),
        mattes=optional("mattes"),
        capture=input_folder("index"),
        folder=output_folder("index"),
    shell:
        "python -m eavatar matte --settings {params.settings:q}"
        " --ingest-settings {params.ingest:q} --capture {params.capture:q}"
        " --sequence {wildcards.sequence:q} {params.mattes} --output {params.folder:q} 2>&1 | tee {log:q}"

"""Face: 68 landmarks per image, the morphable-model fit to all of them, its refinement, where the
eyes look, and what the tracked face looks like.

in   capture/<sequence>/, capture/cameras.json, a morphable model
out  face/landmarks/<sequence>.npz   points (T, C, 68, 2) pixels, confidence (T, C, 68)
     face/fit/                       the landmark fit: identity, tracking, neutral and basis as
                                     below, and quality.csv: sequence, timestep, cameras, error, flag
     face/refine/                    its refinement: identity, tracking, neutral and basis as below
     face/gaze/                      the same with the gaze: identity, tracking, neutral and basis
     face/identity.npz               identity (I,), scale (), landmarks (68, 3) canonical
     face/tracking/<sequence>.npz    expression (T, E), rotation (T, 3), translation (T, 3),
                                     appearance (T, K), gaze (T, G), …
     face/neutral.ply                canonical
     face/expression_basis.npz       basis (V, 3, E) of its vertices, canonical
"""


rule detect_landmarks:
    input:
        index=rules.ingest.output.index,
        frames=rules.ingest.output.frames,
        cameras=rules.calibrate.output.cameras,
        full_cameras=rules.calibrate.output.full_cameras,
        landmarks=provided("landmarks"),
        check=checked("detect_landmarks"),
    output:
        "results/{subject}/face/landmarks/{sequence}.npz",
    log:
        "results/{subject}/logs/detect_landmarks/{sequence}.log",
    benchmark:
        "results/{subject}/benchmarks/detect_landmarks/{sequence}.tsv"
    conda:
        "../../envs/face.yaml"
    threads: 4
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),
        gpu=gpus("face.landmarks"),
    params:
        settings=block("face.landmarks"),
        ingest=ingest_block,
        landmarks=flag("landmarks"),
        capture=input_folder("cameras"),
    shell:
        "python -m eavatar detect-landmarks --settings {params.settings:q}"
        " --ingest-settings {params.ingest:q} --capture {params.capture:q}"
        " --sequence {wildcards.sequence:q} {params.landmarks} --output {output:q} 2>&1 | tee {log:q}"


rule fit_face:
    input:
        landmarks=every_sequence(rules.detect_landmarks.output[0]),
        cameras=rules.calibrate.output.cameras,
        morphable_model=morphable_model,
        check=checked("fit_face"),
    output:
        identity="results/{subject}/face/fit/identity.npz",
        neutral="results/{subject}/face/fit/neutral.ply",
        expression_basis="results/{subject}/face/fit/expression_basis.npz",
        tracking=directory("results/{subject}/face/fit/tracking"),
        quality=report(
            "results/{subject}/face/fit/quality.csv",
            caption="../report/face.rst",
            category="face",
            labels={"subject": "{subject}", "file": "quality of the fit"},
        ),
    log:
        "results/{subject}/logs/fit_face.log",
    benchmark:
        "results/{subject}/benchmarks/fit_face.tsv"
    conda:
        "../../envs/face.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
    params:
        settings=block("face.fit"),
        capture=input_folder("cameras"),
        folder=output_folder("identity"),
    shell:
        "python -m eavatar fit-face --settings {params.settings:q}"
        " --morphable-model {input.morphable_model:q} --capture {params.capture:q}"
        " --landmarks {input.landmarks:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule refine_face:
    input:
        identity=rules.fit_face.output.identity,
        tracking=rules.fit_face.output.tracking,
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        sequences=rules.choose_sequences.output[0],
        morphable_model=morphable_model,
        check=checked("fit_face"),
    output:
        identity="results/{subject}/face/refine/identity.npz",
        neutral="results/{subject}/face/refine/neutral.ply",
        expression_basis="results/{subject}/face/refine/expression_basis.npz",
        tracking=directory("results/{subject}/face/refine/tracking"),
    log:
        "results/{subject}/logs/refine_face.log",
    benchmark:
        "results/{subject}/benchmarks/refine_face.tsv"
    conda:
        "../../envs/face.yaml"
    threads: 8
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        settings=block("face.refine"),
        capture=input_folder("cameras"),
        fit=input_folder("identity"),
        folder=output_folder("identity"),
    shell:
        "python -m eavatar refine-face --settings {params.settings:q}"
        " --morphable-model {input.morphable_model:q} --capture {params.capture:q}"
        " --fit {params.fit:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule measure_gaze:
    input:
        identity=rules.refine_face.output.identity,
        neutral=rules.refine_face.output.neutral,
        expression_basis=rules.refine_face.output.expression_basis,
        tracking=rules.refine_face.output.tracking,
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        sequences=rules.choose_sequences.output[0],
        morphable_model=morphable_model,
        check=checked("fit_face"),
    output:
        identity="results/{subject}/face/gaze/identity.npz",
        neutral="results/{subject}/face/gaze/neutral.ply",
        expression_basis="results/{subject}/face/gaze/expression_basis.npz",
        tracking=directory("results/{subject}/face/gaze/tracking"),
    log:
        "results/{subject}/logs/measure_gaze.log",
    benchmark:
        "results/{subject}/benchmarks/measure_gaze.tsv"
    conda:
        "../../envs/face.yaml"
    threads: 8
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=block("face.gaze"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("identity"),
    shell:
        "python -m eavatar measure-gaze --settings {params.settings:q}"
        " --morphable-model {input.morphable_model:q} --capture {params.capture:q}"
        " --face {params.face:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule measure_appearance:
    input:
        identity=rules.measure_gaze.output.identity,
        neutral=rules.measure_gaze.output.neutral,
        expression_basis=rules.measure_gaze.output.expression_basis,
        tracking=rules.measure_gaze.output.tracking,
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        sequences=rules.choose_sequences.output[0],
        morphable_model=morphable_model,
        check=checked("fit_face"),
    output:
        identity="results/{subject}/face/identity.npz",
        neutral="results/{subject}/face/neutral.ply",
        expression_basis="results/{subject}/face/expression_basis.npz",
        tracking=directory("results/{subject}/face/tracking"),
    log:
        "results/{subject}/logs/measure_appearance.log",
    benchmark:
        "results/{subject}/benchmarks/measure_appearance.tsv"
    conda:
        "../../envs/face.yaml"
    threads: 8
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=block("face.appearance"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("identity"),
    shell:
        "python -m eavatar measure-appearance --settings {params.settings:q}"
        " --morphable-model {input.morphable_model:q} --capture {params.capture:q}"
        " --face {params.face:q} --output {params.folder:q} 2>&1 | tee {log:q}"

"""Prior: a complete head mesh, brought into canonical space.

in   face/, capture/; for the source `provided` a mesh
out  prior/request.json    what a generator is asked; the images that it is shown are prior/images/
     prior/generated.ply, prior/generation.json   what it made, and on what
     prior/raw.ply         the generator's own frame
     prior/aligned.ply     canonical
     prior/alignment.json  similarity transform, residual, confidence, whether it is accepted
     prior/alignment.png   the prior over the fitted face; it stays where the prior is rejected
"""


rule prepare_prior:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        sequences=rules.choose_sequences.output[0],
        identity=rules.refine_face.output.identity,
        tracking=rules.refine_face.output.tracking,
        check=checked("generate_prior"),
    output:
        request="results/{subject}/prior/request.json",
        images=directory("results/{subject}/prior/images"),
    log:
        "results/{subject}/logs/prepare_prior.log",
    conda:
        "../../envs/face.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(10),
    params:
        settings=block("prior.generate"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("request"),
    shell:
        "python -m eavatar prepare-prior --settings {params.settings:q}"
        " --capture {params.capture:q} --face {params.face:q}"
        " --output {params.folder:q} 2>&1 | tee {log:q}"


rule run_generator:
    input:
        request=rules.prepare_prior.output.request,
        images=rules.prepare_prior.output.images,
    output:
        mesh="results/{subject}/prior/generated.ply",
        record="results/{subject}/prior/generation.json",
    log:
        "results/{subject}/logs/run_generator.log",
    benchmark:
        "results/{subject}/benchmarks/run_generator.tsv"
    conda:
        generator_environment
    threads: 4
    resources:
        mem_mb=growing(16000),
        runtime=growing(60),
        gpu=gpus("prior.generate"),
    params:
        python=interpreter,
        program=program,
    shell:
        "{params.python:q} -m eavatar.device"
        " {params.python:q} {params.program:q} --request {input.request:q}"
        " --mesh {output.mesh:q} --record {output.record:q}"
        " --minutes {resources.runtime} 2>&1 | tee {log:q}"


rule generate_prior:
    input:
        identity=rules.refine_face.output.identity,
        neutral=rules.refine_face.output.neutral,
        mesh=ready_mesh,
        check=checked("generate_prior"),
    output:
        "results/{subject}/prior/raw.ply",
    log:
        "results/{subject}/logs/generate_prior.log",
    benchmark:
        "results/{subject}/benchmarks/generate_prior.tsv"
    conda:
        "../../envs/prior.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        settings=block("prior.generate"),
        mesh=flag("mesh"),
    shell:
        "python -m eavatar generate-prior --settings {params.settings:q}"
        " --identity {input.identity:q} --neutral {input.neutral:q} {params.mesh}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule align_prior:
    input:
        raw=rules.generate_prior.output[0],
        identity=rules.refine_face.output.identity,
        neutral=rules.refine_face.output.neutral,
        tracking=rules.refine_face.output.tracking,
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        index=every_sequence(rules.ingest.output.index),
        sequences=rules.choose_sequences.output[0],
    output:
        mesh="results/{subject}/prior/aligned.ply",
        alignment=report(
            "results/{subject}/prior/alignment.json",
            caption="../report/prior.rst",
            category="prior",
            labels={"subject": "{subject}", "file": "alignment"},
        ),
    log:
        text="results/{subject}/logs/align_prior.log",
        image="results/{subject}/prior/alignment.png",  # a failed job keeps its logs only
    benchmark:
        "results/{subject}/benchmarks/align_prior.tsv"
    conda:
        "../../envs/prior.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        settings=block("prior.align"),
        seed=block("seed"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("mesh"),
    shell:
        "python -m eavatar align-prior --settings {params.settings:q} --seed {params.seed}"
        " --raw {input.raw:q} --capture {params.capture:q} --face {params.face:q}"
        " --output {params.folder:q} 2>&1 | tee {log.text:q}"

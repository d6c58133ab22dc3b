"""Tables: per-image metrics of the held-out frames, the subject's table and report page.

in   capture/, face/, splat/<variant>/
out  tables/<variant>/images.csv, pictures/
     metrics.csv   subject, variant, protocol, cameras, images, psnr_db, ssim, lpips
     report.html   one self-contained page
"""


rule evaluate:
    input:
        frames=every_sequence(rules.ingest.output.frames),
        masks=every_sequence(rules.matte.output.masks),
        cameras=rules.calibrate.output.cameras,
        identity=rules.refine_face.output.identity,
        tracking=rules.refine_face.output.tracking,
        avatar=rules.train_splat.output.model,
    output:
        images="results/{subject}/tables/{variant}/images.csv",
        pictures=directory("results/{subject}/tables/{variant}/pictures"),
    log:
        "results/{subject}/logs/evaluate/{variant}.log",
    benchmark:
        "results/{subject}/benchmarks/evaluate/{variant}.tsv"
    conda:
        "../../envs/tables.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=120,
        gpu=1,
    params:
        settings=block("tables.evaluate"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        source=input_folder("avatar"),
        folder=output_folder("images"),
    shell:
        "python -m eavatar evaluate --settings {params.settings:q}"
        " --method avatar --source {params.source:q}"
        " --capture {params.capture:q} --face {params.face:q}"
        " --output {params.folder:q} 2>&1 | tee {log:q}"


rule metrics:
    input:
        images="results/{subject}/tables/full/images.csv",
    output:
        "results/{subject}/metrics.csv",
    log:
        "results/{subject}/logs/metrics.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        "python -m eavatar metrics --subject {wildcards.subject:q} --variant full"
        " --images {input.images:q} --output {output:q} 2>&1 | tee {log:q}"


rule report:
    input:
        metrics=rules.metrics.output[0],
        pictures="results/{subject}/tables/full/pictures",
        frames=every_sequence(rules.ingest.output.frames),
        masks=every_sequence(rules.matte.output.masks),
        cameras=rules.calibrate.output.cameras,
        tracking=rules.refine_face.output.tracking,
        neutral=rules.refine_face.output.neutral,
        prior=rules.align_prior.output.mesh,
        alignment=rules.align_prior.output.alignment,
        surface="results/{subject}/sdf/full/neutral.ply",
        surface_curves="results/{subject}/sdf/full/log.csv",
        avatar="results/{subject}/splat/full/model.yaml",
        avatar_curves="results/{subject}/splat/full/log.csv",
    output:
        "results/{subject}/report.html",
    log:
        "results/{subject}/logs/report.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        results=input_folder("metrics"),
    shell:
        "python -m eavatar report --subject {wildcards.subject:q} --variant full"
        " --results {params.results:q} --output {output:q} 2>&1 | tee {log:q}"

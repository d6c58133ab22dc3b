"""Prior: a complete head mesh, brought into canonical space.

in   face/identity.npz, face/neutral.ply, for the source `provided` a mesh
out  prior/raw.ply         the generator's own frame
     prior/aligned.ply     canonical
     prior/alignment.json  similarity transform, residual, confidence, whether it is accepted
     prior/alignment.png   the prior over the fitted face; it stays where the prior is rejected
"""


rule generate_prior:
    input:
        identity=rules.refine_face.output.identity,
        neutral=rules.refine_face.output.neutral,
        mesh=provided("prior"),
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
        mem_mb=4000,
        runtime=30,
        gpu=gpus("prior.generate"),
    params:
        settings=block("prior.generate"),
        mesh=optional("prior", flag="mesh"),
    shell:
        "python -m eavatar generate-prior --settings {params.settings:q}"
        " --identity {input.identity:q} --neutral {input.neutral:q} {params.mesh}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule align_prior:
    input:
        raw=rules.generate_prior.output[0],
        identity=rules.refine_face.output.identity,
        neutral=rules.refine_face.output.neutral,
    output:
        mesh="results/{subject}/prior/aligned.ply",
        alignment="results/{subject}/prior/alignment.json",
    log:
        text="results/{subject}/logs/align_prior.log",
        image="results/{subject}/prior/alignment.png",  # a failed job keeps its logs only
    benchmark:
        "results/{subject}/benchmarks/align_prior.tsv"
    conda:
        "../../envs/prior.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=block("prior.align"),
        seed=block("seed"),
        folder=output_folder("mesh"),
    shell:
        "python -m eavatar align-prior --settings {params.settings:q} --seed {params.seed}"
        " --raw {input.raw:q} --identity {input.identity:q} --neutral {input.neutral:q}"
        " --output {params.folder:q} 2>&1 | tee {log.text:q}"

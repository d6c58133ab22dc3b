"""Stage II: dynamic Gaussians with expression control, one avatar per subject and variant.

in   capture/, face/, sdf/<variant>/ of the first variant with the same settings of stage I
out  splat/<variant>/model.safetensors, model.yaml
     splat/<variant>/log.csv   losses, Gaussian count and seconds over steps
A killed job goes on from splat/<variant>/checkpoints.
"""


rule train_splat:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
        sdf=stage_one,
    output:
        model="results/{subject}/splat/{variant}/model.safetensors",
        settings="results/{subject}/splat/{variant}/model.yaml",
        curves=report(
            "results/{subject}/splat/{variant}/log.csv",
            caption="../report/splat.rst",
            category="splat",
            labels={"subject": "{subject}", "file": "log of {variant}"},
        ),
    log:
        "results/{subject}/logs/train_splat/{variant}.log",
    benchmark:
        "results/{subject}/benchmarks/train_splat/{variant}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        mem_mb=training_memory("splat"),
        disk_mb=5000,
        runtime=4320,
        gpu=training_gpus,
    params:
        settings=block("splat"),
        run=run_settings("splat"),
        seed=block("seed"),
        held_out=held_out_cameras,
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        sdf=input_folder("sdf"),
        folder=output_folder("model"),
    shell:
        "trap '' TERM USR1; python -m eavatar train-splat --settings {params.settings:q}"
        " --run-settings {params.run:q} --seed {params.seed}"
        " --capture {params.capture:q} --face {params.face:q} --sdf {params.sdf:q}"
        " {params.held_out} --output {params.folder:q} 2>&1 | tee {log:q}"

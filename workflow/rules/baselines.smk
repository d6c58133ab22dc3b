"""Baselines: the methods that the paper compares with, one model per subject and variant.

in   capture/, face/; for HAvatar the morphable model
out  nerface/<variant>/model.safetensors, model.yaml, log.csv
     havatar/<variant>/ likewise
They run only for variants whose `method` names them. A killed job goes on from checkpoints/.
"""


rule train_nerface:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
    output:
        model="results/{subject}/nerface/{variant}/model.safetensors",
        settings="results/{subject}/nerface/{variant}/model.yaml",
        curves="results/{subject}/nerface/{variant}/log.csv",
    log:
        "results/{subject}/logs/train_nerface/{variant}.log",
    benchmark:
        "results/{subject}/benchmarks/train_nerface/{variant}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        mem_mb=training_memory("nerface"),
        disk_mb=5000,
        runtime=4320,
        gpu=1,
    params:
        settings=block("nerface"),
        run=run_settings("nerface"),
        seed=block("seed"),
        held_out=held_out_cameras,
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("model"),
    shell:
        "trap '' TERM USR1; python -m eavatar train-nerface --settings {params.settings:q}"
        " --run-settings {params.run:q} --seed {params.seed}"
        " --capture {params.capture:q} --face {params.face:q}"
        " {params.held_out} --output {params.folder:q} 2>&1 | tee {log:q}"


rule train_havatar:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
        neutral=rules.measure_appearance.output.neutral,
        morphable_model=morphable_model,
    output:
        model="results/{subject}/havatar/{variant}/model.safetensors",
        settings="results/{subject}/havatar/{variant}/model.yaml",
        curves="results/{subject}/havatar/{variant}/log.csv",
    log:
        "results/{subject}/logs/train_havatar/{variant}.log",
    benchmark:
        "results/{subject}/benchmarks/train_havatar/{variant}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        mem_mb=training_memory("havatar"),
        disk_mb=5000,
        runtime=4320,
        gpu=1,
    params:
        settings=block("havatar"),
        run=run_settings("havatar"),
        seed=block("seed"),
        held_out=held_out_cameras,
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("model"),
    shell:
        "trap '' TERM USR1; python -m eavatar train-havatar --settings {params.settings:q}"
        " --run-settings {params.run:q} --seed {params.seed}"
        " --morphable-model {input.morphable_model:q}"
        " --capture {params.capture:q} --face {params.face:q}"
        " {params.held_out} --output {params.folder:q} 2>&1 | tee {log:q}"

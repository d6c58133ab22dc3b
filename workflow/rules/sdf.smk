"""Stage I: signed distance field, deformation and colour, one model per subject and variant.

in   capture/, face/, prior/aligned.ply, prior/alignment.json
out  sdf/<variant>/model.safetensors, model.yaml
     sdf/<variant>/neutral.ply   canonical
     sdf/<variant>/surfaces/<step>.ply   likewise, on the way to it
     sdf/<variant>/log.csv       losses and seconds over steps
"""


rule train_sdf:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
        face=rules.measure_appearance.output.neutral,
        expression_basis=rules.measure_appearance.output.expression_basis,
        prior=rules.align_prior.output.mesh,
        alignment=rules.align_prior.output.alignment,
    output:
        model="results/{subject}/sdf/{variant}/model.safetensors",
        settings="results/{subject}/sdf/{variant}/model.yaml",
        neutral="results/{subject}/sdf/{variant}/neutral.ply",
        surfaces=directory("results/{subject}/sdf/{variant}/surfaces"),
        curves=report(
            "results/{subject}/sdf/{variant}/log.csv",
            caption="../report/sdf.rst",
            category="sdf",
            labels={"subject": "{subject}", "file": "log of {variant}"},
        ),
    log:
        "results/{subject}/logs/train_sdf/{variant}.log",
    benchmark:
        "results/{subject}/benchmarks/train_sdf/{variant}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        mem_mb=training_memory("sdf"),
        disk_mb=5000,
        runtime=240,
        gpu=1,
    params:
        settings=block("sdf"),
        run=run_settings("sdf"),
        seed=block("seed"),
        held_out=held_out_cameras,
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        folder=output_folder("model"),
    shell:
        "trap '' TERM USR1; python -m eavatar train-sdf --settings {params.settings:q}"
        " --run-settings {params.run:q} --seed {params.seed}"
        " --capture {params.capture:q} --face {params.face:q} --prior {input.prior:q}"
        " --alignment {input.alignment:q}"
        " {params.held_out} --output {params.folder:q} 2>&1 | tee {log:q}"

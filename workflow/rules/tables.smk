"""Tables: per-image metrics of the held-out frames, the subject's table and report page.

in   capture/, face/, splat/<variant>/ or images that another code rendered
out  tables/<variant>/images.csv, pictures/, speed.json
     tables/floors.csv   as images.csv, of mean images and nearest training frames
     metrics.csv   of all variants and the floors: subject, variant, protocol, cameras, images,
                   psnr_db, ssim, lpips and more, see docs/metrics.md
     regions.csv   likewise: PSNR of eyes, brows, mouth, …
     metrics.provenance.json   code, settings, inputs, machine and time that made them
     report.html   one self-contained page, pictures of the first avatar
     ../overview.html   all subjects and variants on one page
     ../tables/<table>.csv, .md, .tex   the paper's tables, over all subjects
     ../figures/<figure>_<subject>.png
     ../reenactments/<avatar>_<driver>_<sequence>.mp4, .jpg
"""


rule evaluate:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
        source=of_trained("model"),
        settings=of_trained("settings"),
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
        mem_mb=growing(16000),
        runtime=growing(120),
        gpu=1,
    params:
        settings=block("tables.evaluate"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
        held_out=held_out_cameras,
        method=method,
        source=source,
        images=rendered_files,  # so that other images are measured anew
        folder=output_folder("images"),
    shell:
        "python -m eavatar evaluate --settings {params.settings:q}"
        " --method {params.method} --source {params.source:q}"
        " --capture {params.capture:q} --face {params.face:q} {params.held_out}"
        " --output {params.folder:q} 2>&1 | tee {log:q}"


rule floors:
    input:
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        identity=rules.measure_appearance.output.identity,
        tracking=rules.measure_appearance.output.tracking,
    output:
        "results/{subject}/tables/floors.csv",
    log:
        "results/{subject}/logs/floors.log",
    benchmark:
        "results/{subject}/benchmarks/floors.tsv"
    conda:
        "../../envs/tables.yaml"
    threads: 8
    resources:
        mem_mb=growing(16000),
        runtime=growing(120),
        gpu=1,
    params:
        settings=block("tables.evaluate"),
        image_size=block("splat.image_size"),
        capture=input_folder("cameras"),
        face=input_folder("identity"),
    shell:
        "python -m eavatar floors --settings {params.settings:q}"
        " --image-size {params.image_size}"
        " --capture {params.capture:q} --face {params.face:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule metrics:
    input:
        images=every_variant(rules.evaluate.output.images),
        floors=rules.floors.output[0],
    output:
        table=report(
            "results/{subject}/metrics.csv",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "{subject}", "file": "metrics"},
        ),
        regions=report(
            "results/{subject}/regions.csv",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "{subject}", "file": "regions"},
        ),
        provenance="results/{subject}/metrics.provenance.json",
    log:
        "results/{subject}/logs/metrics.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        variants=variants,
        settings=all_settings,
    shell:
        "python -m eavatar metrics --subject {wildcards.subject:q} --variant {params.variants:q}"
        " floors --images {input.images:q} {input.floors:q} --settings {params.settings:q}"
        " --output {output.table:q} 2>&1 | tee {log:q}"


rule report:
    input:
        metrics=rules.metrics.output.table,
        regions=rules.metrics.output.regions,
        pictures=of_reported(rules.evaluate.output.pictures),
        frames=every_sequence(rules.ingest.output),
        masks=every_sequence(rules.matte.output),
        cameras=rules.calibrate.output.cameras,
        visible=rules.calibrate.output.visible,
        sequences=rules.choose_sequences.output[0],
        tracking=rules.measure_appearance.output.tracking,
        landmarks=every_sequence(rules.detect_landmarks.output[0]),
        fit_quality=rules.fit_face.output.quality,
        fit_tracking=rules.fit_face.output.tracking,
        neutral=rules.measure_appearance.output.neutral,
        request=of_generator(rules.prepare_prior.output.request),
        generation=of_generator(rules.run_generator.output.record),
        prior=rules.align_prior.output.mesh,
        alignment=rules.align_prior.output.alignment,
        alignment_image=rules.align_prior.log.image,
        surface=of_reported(rules.train_sdf.output.neutral),
        surface_settings=of_reported(rules.train_sdf.output.settings),
        surface_curves=of_reported(rules.train_sdf.output.curves),
        avatar=of_reported(rules.train_splat.output.settings),
        avatar_curves=of_reported(rules.train_splat.output.curves),
        reenactments=moved_by_others,
    output:
        report(
            "results/{subject}/report.html",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "{subject}", "file": "page"},
        ),
    log:
        "results/{subject}/logs/report.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(10),
    params:
        variant=reported,
        results=input_folder("metrics"),
        generation=flag("generation"),
        reenactments=moved_words,
    shell:
        "python -m eavatar report --subject {wildcards.subject:q} --variant {params.variant}"
        " --results {params.results:q} {params.generation} {params.reenactments}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule overview:
    input:
        reports=every_subject(rules.report.output[0]),
        metrics=every_subject(rules.metrics.output.table),
        regions=every_subject(rules.metrics.output.regions),
        provenance=every_subject(rules.metrics.output.provenance),
        pictures=every_subject(rules.evaluate.output.pictures),
        tracking=every_subject(rules.measure_appearance.output.tracking),
    output:
        report(
            "results/overview.html",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "all", "file": "page"},
        ),
    log:
        "results/logs/overview.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        results=input_folders("reports"),
        shown=all_reported,
    shell:
        "python -m eavatar overview --results {params.results:q} --shown {params.shown:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule measure_speed:
    input:
        tracking=rules.measure_appearance.output.tracking,
        cameras=rules.calibrate.output.cameras,
        source=of_trained("model"),
        settings=of_trained("settings"),
        curves=of_trained("curves"),
    output:
        "results/{subject}/tables/{variant}/speed.json",
    log:
        "results/{subject}/logs/measure_speed/{variant}.log",
    conda:
        "../../envs/tables.yaml"
    threads: 8
    resources:
        mem_mb=growing(8000),
        runtime=growing(15),
        gpu=1,
    params:
        method=method,
        source=input_folder("source"),
        tracking=held_out_tracking,
        benchmarks=benchmarks,
    shell:
        "python -m eavatar measure-speed --method {params.method}"
        " --source {params.source:q} --log {input.curves:q}"
        " --tracking {params.tracking:q} --cameras {input.cameras:q}"
        " --benchmarks {params.benchmarks:q} --output {output:q} 2>&1 | tee {log:q}"


rule paper_table:
    input:
        measured=measured,
    output:
        csv=report(
            "results/tables/{table}.csv",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "all", "file": "{table}"},
        ),
        markdown="results/tables/{table}.md",
        tex="results/tables/{table}.tex",
    log:
        "results/logs/paper_table/{table}.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        layout=layout,
        measured=measured_words,
        folder=output_folder("csv"),
    shell:
        "python -m eavatar paper-table --table {wildcards.table} --layout {params.layout:q}"
        " {params.measured} --output {params.folder:q} 2>&1 | tee {log:q}"


for name in LAYOUTS.tables:

    rule:
        name:
            name
        input:
            paths_of(rules.paper_table.output, table=name),
        localrule: True


rule paper_figure:
    input:
        sources=figure_sources,
        cameras=rules.calibrate.output.cameras,
        tracking=rules.measure_appearance.output.tracking,
    output:
        report(
            "results/figures/{figure}_{subject}.png",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "{subject}", "file": "{figure}"},
        ),
    log:
        "results/{subject}/logs/paper_figure/{figure}.log",
    conda:
        "../../envs/tables.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        layout=figure_layout,
    shell:
        "python -m eavatar paper-figure --layout {params.layout:q} --sources {input.sources:q}"
        " --cameras {input.cameras:q} --tracking {input.tracking:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule reenact:
    input:
        avatars=reenacted,
        avatar_cameras=of_avatar(rules.calibrate.output.cameras),
        avatar_sequences=of_avatar(rules.choose_sequences.output[0]),
        avatar_identity=of_avatar(rules.measure_appearance.output.identity),
        avatar_neutral=of_avatar(rules.measure_appearance.output.neutral),
        avatar_basis=of_avatar(rules.measure_appearance.output.expression_basis),
        avatar_tracking=of_avatar(rules.measure_appearance.output.tracking),
        cameras=of_driver(rules.calibrate.output.cameras),
        sequences=of_driver(rules.choose_sequences.output[0]),
        identity=of_driver(rules.measure_appearance.output.identity),
        neutral=of_driver(rules.measure_appearance.output.neutral),
        expression_basis=of_driver(rules.measure_appearance.output.expression_basis),
        tracking=of_driver(rules.measure_appearance.output.tracking),
        frames=of_driver(rules.ingest.output.frames),
    output:
        video=report(
            "results/reenactments/{pair}.mp4",
            caption="../report/tables.rst",
            category="tables",
            labels={"subject": "{pair}", "file": "reenactment"},
        ),
        sheet="results/reenactments/{pair}.jpg",
    log:
        "results/logs/reenact/{pair}.log",
    conda:
        "../../envs/tables.yaml"
    threads: 8
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
        gpu=1,
    params:
        words=pair_words,
    shell:
        "python -m eavatar reenact {params.words} --output {output.video:q} 2>&1 | tee {log:q}"


rule figures:
    input:
        figures,
        paths_of(rules.reenact.output, pair=PAIRS),
    localrule: True


rule tables:
    input:
        paths_of(rules.paper_table.output, table=LAYOUTS.tables),
        rules.figures.input,
        rules.overview.output if PLANS else [],
    localrule: True

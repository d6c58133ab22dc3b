"""EAvatar: from raw multi-view video to an expression-aware head avatar and its metrics.

    snakemake --cores 8 results/demo/metrics.csv results/demo/report.html

Rules are in workflow/rules, one file for each stage, in the order of the data.
"""


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/capture.smk"
include: "workflow/rules/face.smk"
include: "workflow/rules/prior.smk"
include: "workflow/rules/sdf.smk"
include: "workflow/rules/splat.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/tables.smk"


localrules:
    refuse,


# Subjects that cannot run do not keep the others from it, but the run fails and names them.
rule refuse:
    output:
        "results/refused",  # never made
    log:
        "results/logs/refuse.log",
    priority: -1
    params:
        sentences=list(FAULTS.values()),
    run:  # no environment is needed to say so
        shell("printf '%s\\n' {params.sentences:q} | tee {log:q}; exit 1")


rule all:
    default_target: True
    input:
        expand("results/{subject}/metrics.csv", subject=PLANS),
        expand("results/{subject}/report.html", subject=PLANS),
        rules.overview.output if PLANS else [],
        rules.refuse.output if FAULTS else [],


onsuccess:
    end_run()


onerror:
    end_run()

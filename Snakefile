"""EAvatar: from raw multi-view video to an expression-aware head avatar and its metrics.

    snakemake --cores 8 results/demo/metrics.csv results/demo/report.html

Rules are in workflow/rules, one file for each stage, in the order of the data.
"""


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/capture.smk"
include: "workflow/rules/face.smk"
include: "workflow/rules/prior.smk"
include: "workflow/rules/sdf.smk"
include: "workflow/rules/splat.smk"
include: "workflow/rules/tables.smk"


rule all:
    default_target: True
    input:
        expand("results/{subject}/metrics.csv", subject=SUBJECTS),
        expand("results/{subject}/report.html", subject=SUBJECTS),

# From the results of all jobs to records, and from records alone to everything that is read.

TABLES = [f"{RECORDS}/records.parquet", f"{RECORDS}/runs.parquet", f"{RECORDS}/plan.json"]

if SETTINGS.records is None:

    rule collect:
        input:
            PLAN.outputs(),
        output:
            TABLES,
        log:
            f"results/{SCALE}/logs/collect.log",
        shell:
            "{HARNESS} collect --config {CONFIG:q} --scale {SCALE:q} 2> {log:q}"


rule tables:
    input:
        TABLES,
    output:
        directory(f"{RECORDS}/tables"),
    log:
        f"{RECORDS}/logs/tables.log",
    shell:
        "{HARNESS} tables --records {RECORDS:q} --output {output:q} 2> {log:q}"


rule figures:
    input:
        TABLES,
    output:
        directory(f"{RECORDS}/figures"),
    log:
        f"{RECORDS}/logs/figures.log",
    threads: workflow.cores
    shell:
        "{HARNESS} figures --records {RECORDS:q} --output {output:q} --processes {threads} 2> {log:q}"


rule claims:
    input:
        TABLES,
        f"{CONFIG}/claims.yaml",
    output:
        f"{RECORDS}/claims.csv",
    log:
        f"{RECORDS}/logs/claims.log",
    shell:
        "{HARNESS} claims --config {CONFIG:q} --records {RECORDS:q} --output {output:q} 2> {log:q}"


rule recommendations:
    input:
        TABLES,
        f"{CONFIG}/recommendations.yaml",
    output:
        f"{RECORDS}/recommendations.csv",
    log:
        f"{RECORDS}/logs/recommendations.log",
    shell:
        "{HARNESS} recommendations --config {CONFIG:q} --records {RECORDS:q} --output {output:q} 2> {log:q}"


rule report:
    input:
        rules.tables.output,
        rules.figures.output,
        rules.claims.output,
        rules.recommendations.output,
    output:
        f"{RECORDS}/report.html",
        f"{RECORDS}/report.md",
    log:
        f"{RECORDS}/logs/report.log",
    shell:
        "{HARNESS} report --records {RECORDS:q} --output {RECORDS:q} 2> {log:q}"

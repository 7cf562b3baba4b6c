// nextflow run main.nf --volume volume.zarr --out out
params.volume = 'volume.zarr'
params.out = 'out'
params.shards = 16

process PLAN {
    cpus 4
    input: val volume
    output: stdout
    script: "mdrn-batch plan ${volume} ${file(params.out).toAbsolutePath()} --threads ${task.cpus}"
}

process SHARD {
    cpus 4
    input: tuple val(plan), val(i)
    output: val plan
    script: "mdrn-batch run ${plan} --shard ${i}/${params.shards}"
}

process MERGE {
    input: val plan
    output: path 'report.json'
    script: "mdrn-batch merge-report ${plan} > report.json"
}

workflow {
    plan = PLAN(file(params.volume).toAbsolutePath().toString()).map { it.trim() }
    done = SHARD(plan.combine(Channel.of(1..params.shards)))
    MERGE(done.collect().map { it[0] })
}

"""The keys of Redis. Nobody else spells one.

    denoised:job:{id}              hash     the `JobRecord`, and `seq`, `writes`, `execution`, `entered`,
                                            `saved_step`, `saved_evaluations`
    denoised:job:{id}:events       stream   one entry an event, id = "{seq}-0"
    denoised:job:{id}:image:{k}    string   the encoded picture
    denoised:job:{id}:resume       string   where its images are (`worker.engine.resume`), until it is over
    denoised:ends                  stream   ids of jobs as they end, the newest ten thousand
    denoised:jobs:{owner}          zset     job ids by created_at
    denoised:idempotency:{owner}:{hash}     string   job id and body hash, 24 h
    denoised:between:{model}       hash     since when job ids stand between its queue and a worker
    denoised:workers               set      names of workers
    denoised:models                set      names of all models that were ever served
    denoised:ticket:{ticket}       string   the caller it stands for, 30 s
    denoised:wake:{reader}         stream   one entry: that reader of events is to look at its list again; 1 h
    denoised:worker:{name}         string   its `WorkerReport`, expires with its lease
    denoised:worker:{name}:counted hash     how much of its `Counters` is in the totals, a day
    denoised:totals:engine         hash     the `Counters` of all workers there ever were
    denoised:totals:jobs           hash     jobs by "{status}:{model}"; accepted ones, too
    denoised:model:{name}          channel  work was queued for that model
    denoised:canceled              channel  ids of jobs that were canceled

What belongs to a job that is over expires after `result_ttl`, and so does a resume point; a job that
is not over never does. RQ's own keys (rq:*) belong to RQ.
"""

from __future__ import annotations

CANCELED_CHANNEL = "denoised:canceled"
ENDS = "denoised:ends"
WORKERS = "denoised:workers"
MODELS = "denoised:models"
ENGINE_TOTALS = "denoised:totals:engine"
JOB_TOTALS = "denoised:totals:jobs"


def job(job_id: str) -> str:
    return f"denoised:job:{job_id}"


def events(job_id: str) -> str:
    return f"denoised:job:{job_id}:events"


def image(job_id: str, index: int) -> str:
    return f"denoised:job:{job_id}:image:{index}"


def resume(job_id: str) -> str:
    return f"denoised:job:{job_id}:resume"


def jobs(owner: str) -> str:
    return f"denoised:jobs:{owner}"


def claim(owner: str, key_hash: str) -> str:
    return f"denoised:idempotency:{owner}:{key_hash}"


def between(model: str) -> str:
    return f"denoised:between:{model}"


def worker(name: str) -> str:
    return f"denoised:worker:{name}"


def counted(name: str) -> str:
    return f"denoised:worker:{name}:counted"


def ticket(ticket_hash: str) -> str:
    return f"denoised:ticket:{ticket_hash}"


def wake(reader: str) -> str:
    return f"denoised:wake:{reader}"


def model_channel(model: str) -> str:
    return f"denoised:model:{model}"

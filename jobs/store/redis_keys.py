"""The keys in Redis. No other module spells one.

    denoised:job:{id}              hash     the `JobRecord`, and `format`, `requires`, `seq`, `writes`, `execution`,
                                            `worker`, `saved_step`, `saved_evaluations`
    denoised:job:{id}:events       stream   one entry per event, id = "{seq}-0"; a: attempt, e: JSON, f: format
    denoised:job:{id}:image:{k}    string   an encoded picture
    denoised:job:{id}:array:{k}:{name}      string   numbers of image k as an .npy file (`jobs.record.ARRAY_NAMES`)
    denoised:job:{id}:resume       string   where its images are saved (`worker.engine.resume`), until it is over
    denoised:job:{id}:objects      hash     bytes of its objects outside Redis, by file (`jobs.results.ledger`)
    denoised:input:{owner}:{sha256}:{shape}        string   a picture that a job starts from, as PNG of that shape
    denoised:input:{owner}:{sha256}:{shape}:jobs   set      ids of the jobs that are not over and start from it
    denoised:stored:{owner}        hash     bytes of a caller's pictures by key, and in all: `stored`, `counted_at`
    denoised:results               string   the folder of this Redis' objects in the place for results
    denoised:results:bytes         hash     bytes of all objects there, by kind
    denoised:results:frames        zset     "{job}/{file}" of the objects with frames, by age
    denoised:results:due           zset     ids of the jobs that have objects, by when to look at them again
    denoised:webhooks:{origin}     zset     ids of ended jobs whose webhook goes there, by when it is due
    denoised:ends                  stream   ids of jobs as they end, the newest ten thousand
    denoised:probe                 none     deleting it, although it never exists, shows whether Redis accepts writes
    denoised:jobs:{owner}          zset     job ids by created_at
    denoised:usage:{owner}         hash     evaluations accepted in the current minute and day (`jobs.store.usage`)
    denoised:kept:{owner}          zset     "{job}:{images}" by the time at which these expire; inf before the end
    denoised:idempotency:{owner}:{hash}     string   job id and body hash, 24 h
    denoised:between:{model}       hash     job ids in RQ's intermediate queue, and when each was first seen there
    denoised:turns:{model}         zset     callers with waiting jobs, by position (`jobs.store.waiting_lists`)
    denoised:credits:{model}       hash     the evaluations that each of them may still draw in its turn
    denoised:workers               set      names of workers
    denoised:models                set      names of all models ever served
    denoised:orders                hash     by model, what operators ordered: `removed`, `generation` (`model_list`)
    denoised:cards                 hash     by model, its card and speed as last reported (`kept_models`)
    denoised:claims:{model}        zset     "{digest} {worker}" of the workers that serve it, by the end of their lease
    denoised:next:{model}          zset     "{digest} {worker} {phase}" of the workers that wait to serve other weights
    denoised:ticket:{ticket}       string   the caller it stands for, 30 s
    denoised:choice:{owner}  string   the model that a caller has chosen as its default, 30 d after the last use
    denoised:wake:{reader}         stream   one entry: this reader of events must read its list again; 1 h
    denoised:worker:{name}         string   its `WorkerReport`, expires with its lease
    denoised:worker:{name}:counted hash     how much of its `Counters` is in the totals, one day
    denoised:totals:engine         hash     the `Counters` of all workers so far
    denoised:totals:jobs           hash     number of jobs by "{status}:{model}", including status "accepted"
    denoised:model:{name}          channel  work was queued for this model
    denoised:canceled              channel  ids of canceled jobs

The keys of a finished job expire after `result_ttl`, and so does a resume point; the keys of a job that is not over
never do. A picture expires `result_ttl` after the last job that starts from it. RQ's own keys (rq:*) belong to RQ.
"""

from __future__ import annotations

CANCELED_CHANNEL = "denoised:canceled"
ENDS = "denoised:ends"
INPUTS = "denoised:input:"
KEPT = "denoised:kept:"
PROBE = "denoised:probe"
RESULTS = "denoised:results"
RESULT_BYTES = "denoised:results:bytes"
RESULT_FRAMES = "denoised:results:frames"
RESULTS_DUE = "denoised:results:due"
WEBHOOKS = "denoised:webhooks:"
WORKERS = "denoised:workers"
MODELS = "denoised:models"
MODEL_ORDERS = "denoised:orders"
KEPT_MODELS = "denoised:cards"
ENGINE_TOTALS = "denoised:totals:engine"
JOB_TOTALS = "denoised:totals:jobs"


def accepted_jobs(model: str) -> str:
    """The field of `JOB_TOTALS` that counts a model's accepted jobs."""
    return f"accepted:{model}"


def job(job_id: str) -> str:
    return f"denoised:job:{job_id}"


def events(job_id: str) -> str:
    return f"denoised:job:{job_id}:events"


def image(job_id: str, index: int) -> str:
    return f"denoised:job:{job_id}:image:{index}"


def array(job_id: str, index: int, name: str) -> str:
    return f"denoised:job:{job_id}:array:{index}:{name}"


def resume(job_id: str) -> str:
    return f"denoised:job:{job_id}:resume"


def objects(job_id: str) -> str:
    return f"denoised:job:{job_id}:objects"


def input_picture(owner: str, digest: str, shape: str) -> str:
    return f"{INPUTS}{owner}:{digest}:{shape}"


def input_jobs(input_key: str) -> str:
    return f"{input_key}:jobs"


def stored_inputs(owner: str) -> str:
    return f"denoised:stored:{owner}"


def webhooks(origin: str) -> str:
    return f"{WEBHOOKS}{origin}"


def jobs(owner: str) -> str:
    return f"denoised:jobs:{owner}"


def idempotency(owner: str, key_hash: str) -> str:
    return f"denoised:idempotency:{owner}:{key_hash}"


def intermediate(model: str) -> str:
    return f"denoised:between:{model}"


def usage(owner: str) -> str:
    return f"denoised:usage:{owner}"


def kept_images(owner: str) -> str:
    return f"{KEPT}{owner}"


def turns(model: str) -> str:
    return f"denoised:turns:{model}"


def caller_credits(model: str) -> str:
    return f"denoised:credits:{model}"


def worker(name: str) -> str:
    return f"denoised:worker:{name}"


def counted(name: str) -> str:
    return f"denoised:worker:{name}:counted"


def ticket(ticket_hash: str) -> str:
    return f"denoised:ticket:{ticket_hash}"


def model_choice(owner: str) -> str:
    return f"denoised:choice:{owner}"


def wake(reader: str) -> str:
    return f"denoised:wake:{reader}"


def claims(model: str) -> str:
    return f"denoised:claims:{model}"


def next_claims(model: str) -> str:
    return f"denoised:next:{model}"


def model_channel(model: str) -> str:
    return f"denoised:model:{model}"

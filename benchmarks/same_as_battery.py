"""Battery of same_as.py: which commands run, which calls are made, which requests are refused.

Every text is written with the names of commit e8b0ad1; same_as_worker.py puts in those of the tree
that it runs. `{out}` stands for `--output out/NAME`, other words in braces for a row of SETTINGS.
"""

SETTINGS = {
    "llama": "--model models/llama --data rows/text.jsonl {steps}",
    "tied": "--model models/tied --data rows/text.jsonl {steps}",
    "gpt2": "--model models/gpt2 --data rows/text.jsonl {steps}",
    "mixtral": "--model models/mixtral --data rows/text.jsonl {steps}",
    "bert": "--model models/bert --data rows/labelled.tsv {steps}",
    "numbers": "--model models/bert --data rows/numbers.jsonl {steps}",
    "minilm": "--model builtin:minilm --data rows/labelled.tsv {steps}",
    "steps": "--steps 6 --batch-size 8 --lr 5e-3 --threads 1",
    "base": "--model models/llama",
    "few": "--model models/llama --adapter out/train-lora --max-new-tokens 8",
    "search": "--steps 12 --batch-size 8 --lr 5e-3 --threads 1 --eval-fraction 0.25",
    "a100": "--device A100 --teraflops 100",
    "columns": "--columns text=sentence label=kind",
}

TRAIN = {
    "lora": "{llama} --rank 4",
    "lora-again": "{llama} --rank 2 --seed 1 --targets qv",
    "rslora": '{llama} --rank 4 --alpha 7 --scale-rule "alpha/sqrt(rank)" --dropout 0.2',
    "dora": "{llama} --rank 4 --delta dora",
    "dora-dropout": "{llama} --rank 4 --delta dora --dropout 0.1 --targets attention",
    "vera": "{llama} --rank 8 --delta vera --lr 5e-2",
    "loha": "{llama} --rank 3 --delta loha",
    "lokr": "{llama} --rank 4 --delta lokr",
    "adalora": "{llama} --rank 6 --delta adalora --target-rank 3 --steps 30 --budget-every 4",
    "adalora-far": "{llama} --rank 4 --delta adalora --steps 9 --budget-every 2 "
    "--budget-warmup 0.2 --budget-final 0.2 --orthogonality 0.5",
    "gaussian": "{llama} --rank 4 --init gaussian --init-std 0.02",
    "orthogonal": "{llama} --rank 4 --init orthogonal",
    "pissa": "{llama} --rank 4 --init pissa",
    "pissa-fast": "{llama} --rank 4 --init pissa-fast",
    "olora": "{llama} --rank 4 --init olora",
    "eva": "{llama} --rank 4 --init eva",
    "lora-ga": "{llama} --rank 4 --init lora-ga",
    "dora-gaussian": "{llama} --rank 4 --delta dora --init gaussian",
    "norms": "{llama} --rank 2 --whole-modules norms",
    "head": "{llama} --rank 2 --targets qv --whole-modules lm_head model.norm",
    "whole-alone": "{llama} --targets none --whole-modules norms",
    "token-rows": "{llama} --rank 2 --targets qv --token-rows 7 9 40",
    "token-rows-tied": "{tied} --rank 2 --targets qv --token-rows 7 9 40",
    "token-rows-yaml": "{llama} --config configs/token-rows.yaml",
    "embedding": "{llama} --rank 2 --targets embed_tokens lm_head q_proj",
    "tie": "{tied} --rank 2 --targets embed_tokens lm_head q_proj --tie",
    "untied": "{tied} --rank 2 --targets embed_tokens q_proj",
    "overrides": "--config configs/overrides.yaml {out} --rank 4 --threads 1",
    "whole-yaml": "{llama} --config configs/whole.yaml",
    "parts": "{gpt2} --config configs/parts.yaml",
    "gpt2": "{gpt2} --rank 4",
    "gpt2-bias": "{gpt2} --rank 4 --bias adapted --targets c_attn",
    "gpt2-bias-all": "{gpt2} --rank 4 --bias all --targets c_fc c_proj",
    "gpt2-qv": "{gpt2} --rank 4 --targets c_attn.q c_attn.v",
    "mixtral": "{mixtral} --rank 2",
    "mixtral-mlp": "{mixtral} --rank 2 --targets experts* --steps 3",
    "exclude": "{llama} --rank 4 --exclude down_proj k_proj",
    "regex": r'{llama} --rank 4 --targets "layers\.0\..*(q|up)_proj"',
    "mlp": "{llama} --rank 4 --targets mlp --dtype bfloat16",
    "ranks-even": "{llama} --rank 4 --rank-budget 3000",
    "ranks-bottom": "{llama} --rank 4 --ranks bottom-heavy",
    "ranks-top": "{llama} --rank 4 --ranks top-heavy --rank-budget 3000",
    "ranks-linear": "{llama} --rank 4 --ranks linear",
    "ranks-falling": "{llama} --rank 4 --ranks linear-falling",
    "ranks-variance": "{llama} --rank 4 --ranks explained-variance",
    "ranks-suggested": "{llama} --rank 4 --ranks suggested",
    "base-bf16": "{llama} --rank 4 --base-dtype bfloat16",
    "mixed-bf16": "{llama} --rank 4 --mixed-precision bf16",
    "checkpointing": "{llama} --rank 4 --gradient-checkpointing --dropout 0.1",
    "checkpointing-light": "{llama} --rank 4 --light-checkpointing --dropout 0.1",
    "padded": "{llama} --rank 4 --packing off",
    "packed": "{llama} --rank 4 --packing on --batch-tokens 150",
    "accumulate": "{llama} --rank 4 --accumulate 3 --batch-size 4",
    "schedule": "{llama} --rank 4 --schedule linear --warmup 3 --weight-decay 0.1 --clip 0",
    "constant": "{llama} --rank 4 --schedule constant --warmup 0 --clip 0.1 --final last",
    "patience": "{llama} --rank 4 --steps 20 --lr 1 --patience 1 --eval-every 2",
    "epochs": "--model models/llama --data rows/text.jsonl --epochs 0.5 --rank 2 --threads 1",
    "cut": "{llama} --rank 4 --max-length 8",
    "completions": "{llama} --rank 4 --data rows/pairs.jsonl",
    "completions-all": "{llama} --rank 4 --data rows/pairs.jsonl --loss-on all",
    "chat": "{llama} --rank 4 --data rows/chat.jsonl --eval-data rows/chat.jsonl",
    "story": "{llama} --rank 4 --data rows/story.txt --eval-fraction 0.3",
    "straight": "{llama} --rank 2 --steps 4 --checkpoint-every 2 --dropout 0.1",
    "resumed": "{llama} --rank 2 --steps 4 --checkpoint-every 2 --dropout 0.1 --resume",
    "classify": "{bert} --rank 4 --targets qv",
    "classify-again": "{bert} --rank 2 --targets qv --seed 2",
    "classify-dora": "{bert} --rank 4 --delta dora --bias adapted",
    "classify-columns": "{bert} --rank 2 --data rows/columns.tsv {columns}",
    "classify-csv": "{bert} --rank 2 --data rows/labelled.csv --quotes",
    "classify-ga": "{bert} --rank 4 --init lora-ga --dropout 0.1",
    "classify-pairs": "{bert} --rank 2 --data rows/two.jsonl --bias all",
    "regress": "{numbers} --rank 4",
    "regress-loha": "{numbers} --rank 2 --delta loha --targets attention",
    "minilm": "{minilm} --rank 4 --steps 3 --targets qv",
    "minilm-dora": "{minilm} --rank 4 --steps 2 --delta dora --whole-modules norms",
}

EVAL = {
    "base": "{base} --data rows/text.jsonl",
    "lora": "{base} --data rows/text.jsonl --adapter out/train-lora --threads 1",
    "completions": "{base} --data rows/pairs.jsonl --adapter out/train-completions --limit 20",
    "all": "{base} --data rows/pairs.jsonl --loss-on all --batch-size 7 --max-length 20",
    "chat": "{base} --data rows/chat.jsonl --adapter out/train-chat --dtype bfloat16",
    "text": "{base} --data rows/pairs.jsonl --adapter out/train-completions --limit 6 "
    "--text-metrics --max-new-tokens 6",
    "text-beams": "{base} --data rows/pairs.jsonl --limit 4 --text-metrics --max-new-tokens 4 "
    "--beams 2 --length-penalty 0.5 --no-repeat-ngram 2",
    "any-base": "--model models/llama-other --data rows/text.jsonl --any-base "
    "--adapter out/train-lora",
    "pissa": "{base} --data rows/text.jsonl --adapter out/train-pissa",
    "mixtral": "--model models/mixtral --data rows/text.jsonl --adapter out/train-mixtral",
    "gpt2": "--model models/gpt2 --data rows/text.jsonl --adapter out/train-parts",
    "classify": "--model models/bert --data rows/labelled.tsv --adapter out/train-classify",
    "columns": "--model models/bert --data rows/columns.tsv --adapter out/train-classify "
    "{columns} --no-quotes",
    "pairs": "--model models/bert --data rows/two.jsonl --adapter out/train-classify-pairs",
    "regress": "--model models/bert --data rows/numbers.jsonl --adapter out/train-regress",
    "minilm": "--model builtin:minilm --data rows/labelled.tsv --adapter out/train-minilm",
    "tuned": "--model models/bert-tuned --data rows/labelled.tsv",
}

GENERATE = {
    "base": '{base} --prompt "the cat" --max-new-tokens 8',
    "two": '{few} --prompt "the cat" "a dog saw the" --threads 1',
    "one-by-one": '{few} --prompt "the cat" "a dog saw the" --batch-size 1',
    "sampled": '{few} --prompt "the cat" --temperature 1.5 --top-p 0.9 --seed 3',
    "beams": '{few} --prompt "the cat" --beams 3 --length-penalty 2',
    "no-repeat": '{few} --prompt "the cat" --no-repeat-ngram 2',
    "chat": '{few} --prompt "hi" --chat',
    "rows": "{few} --data rows/pairs.jsonl --limit 5 --output out/answers.jsonl",
    "turns": "{few} --data rows/chat.jsonl --limit 3 --dtype bfloat16",
    "any-base": '--model models/llama-other --adapter out/train-dora --any-base --prompt "a" '
    "--max-new-tokens 4",
}

PREVIEW = {
    "completions": "{base} --data rows/pairs.jsonl --show 2",
    "cut": "{base} --data rows/pairs.jsonl --max-length 12 --loss-on all",
    "chat": "{base} --data rows/chat.jsonl --limit 4",
    "story": "{base} --data rows/story.txt --show 0",
    "classify": "--model models/bert --data rows/columns.tsv {columns}",
    "numbers": "--model models/bert --data rows/numbers.jsonl --task regress",
    "stdlib": "--model builtin:minilm --data builtin:stdlib-docs --limit 30 --split test",
}

INSPECT = {
    "lora": "out/train-lora",
    "lora-model": "out/train-lora --model models/llama --intruders",
    "with": "out/train-lora --with out/train-lora-again --model models/llama",
    "attention": 'out/train-lora --model models/llama --attention "the cat sat on a mat"',
    "plot": "out/train-lora --with out/train-rslora --plot out/inspect.png",
    "any-base": "out/train-lora --model models/llama-other --any-base",
    "dora": "out/train-dora",
    "dora-model": "out/train-dora --model models/llama",
    "vera": "out/train-vera --model models/llama",
    "loha": "out/train-loha",
    "lokr": "out/train-lokr --model models/llama",
    "adalora": "out/train-adalora --model models/llama",
    "pissa": "out/train-pissa --model models/llama",
    "ranks": "out/train-ranks-top",
    "overrides": "out/train-overrides",
    "norms": "out/train-norms --model models/llama",
    "token-rows": "out/train-token-rows --model models/llama",
    "tie": "out/train-tie --model models/tied",
    "gpt2": "out/train-gpt2-bias --model models/gpt2",
    "parts": "out/train-parts --model models/gpt2",
    "mixtral": "out/train-mixtral --model models/mixtral",
    "classify": "out/train-classify --model models/bert",
    "regress": "out/train-regress",
    "minilm": "out/train-minilm --model builtin:minilm",
    "targets-llama": "models/llama --targets",
    "targets-gpt2": "models/gpt2 --targets",
    "targets-mixtral": "models/mixtral --targets",
    "targets-bert": "models/bert --targets",
    "targets-minilm": "builtin:minilm --targets",
}

MERGE = {
    "lora": "{base} --adapter out/train-lora {out}",
    "dora": "{base} --adapter out/train-dora {out} --data rows/text.jsonl",
    "bf16": "{base} --adapter out/train-lora {out} --dtype bfloat16",
    "f16": "{base} --adapter out/train-adalora {out} --dtype float16 --allow-loss",
    "pissa": "{base} --adapter out/train-pissa {out}",
    "norms": "{base} --adapter out/train-norms {out} --device cpu",
    "token-rows": "{base} --adapter out/train-token-rows {out}",
    "tie": "--model models/tied --adapter out/train-tie {out}",
    "untied": "--model models/tied --adapter out/train-untied {out}",
    "gpt2": "--model models/gpt2 --adapter out/train-gpt2-bias {out}",
    "parts": "--model models/gpt2 --adapter out/train-gpt2-qv {out}",
    "mixtral": "--model models/mixtral --adapter out/train-mixtral {out}",
    "classify": "--model models/bert --adapter out/train-classify {out} --data rows/columns.tsv "
    "{columns}",
    "regress": "--model models/bert --adapter out/train-regress {out}",
    "any-base": "--model models/llama-other --adapter out/train-lora {out} --any-base",
}

EXTRACT = {
    "rank": "--base models/llama --tuned models/llama-tuned --rank 4 {out}",
    "energy": "--base models/llama --tuned models/llama-tuned --energy 0.8 {out}",
    "size": "--base models/llama --tuned models/llama-tuned --size-bytes 40000 {out} "
    "--leave-out embed_tokens lm_head --dtype bfloat16",
    "data": "--base models/llama --tuned out/merge-lora --rank 4 {out} --data rows/text.jsonl",
    "classify": "--base models/bert --tuned models/bert-tuned --rank 2 {out}",
}

RESIZE = {
    "rank": "out/train-lora --rank 2 {out}",
    "energy": "out/train-lora --energy 0.7 {out}",
    "parameters": "out/train-rslora --parameters 2500 {out}",
    "dora": "out/train-dora --rank 2 --model models/llama {out}",
    "loha": "out/train-loha --rank 2 {out}",
    "lokr": "out/train-lokr --energy 0.9 {out}",
    "adalora": "out/train-adalora --rank 1 {out}",
    "pissa": "out/train-pissa --rank 3 {out}",
    "mixtral": "out/train-mixtral --rank 1 {out}",
    "classify": "out/train-classify --rank 2 {out}",
}

COMBINE = {
    "exact": "out/train-lora:0.5 out/train-lora-again:-2 {out}",
    "one": "out/train-lora {out}",
    "rank": "out/train-lora out/train-rslora --rank 3 {out}",
    "energy": "out/train-lora out/train-rslora:0.3 --energy 0.8 {out} --dtype float64",
    "ties": "out/train-lora:0.5 out/train-rslora:0.5 --method ties --density 0.3 {out}",
    "dare": "out/train-lora:0.5 out/train-rslora:0.5 --method dare --density 0.3 {out}",
    "dare-seed": "out/train-lora out/train-mlp --method dare --density 0.5 --seed 1 {out}",
    "magnitude": "out/train-lora:0.5 out/train-rslora:0.5 --method magnitude --density 0.3 {out}",
    "ties-rank": "out/train-lora out/train-lora-again --method ties --density 0.5 --rank 2 {out}",
    "dora": "out/train-dora out/train-lora:0.5 --model models/llama {out}",
    "kinds": "out/train-loha:0.5 out/train-lokr out/train-pissa {out}",
    "heads": "out/train-classify:0.25 out/train-classify-again:0.75 {out}",
    "heads-first": "out/train-classify out/train-classify-again --whole first {out}",
    "heads-drop": "out/train-classify out/train-classify-again --whole drop {out}",
    "norms": "out/train-norms:0.5 out/train-lora:2 --model models/llama {out}",
    "experts": "out/train-mixtral:2 out/train-mixtral-mlp {out} --any-base",
}

RANK = {
    "truncate": "--model models/llama --data rows/text.jsonl --rank 4 {search} --refine 0.3 {out} "
    "--plot out/rank.png",
    "classify": "--model models/bert --data rows/labelled.tsv --rank 4 {search} --all-rows",
    "try": "--model models/llama --data rows/text.jsonl --rank 6 --try-ranks 2 3 {search} "
    "--metric loss",
    "grid": "--model models/bert --data rows/labelled.tsv --eval-data rows/labelled.tsv --way grid "
    "--rank 2 --metric f1 --steps 4 --threads 1 --targets qv",
    "grow": "--model models/llama --data rows/text.jsonl --way grow --rank 4 {search} {out}",
    "grow-enough": "--model models/llama --data rows/text.jsonl --way grow --rank 4 {search} "
    "--good-enough 9",
    "threshold": "--model models/llama --way threshold",
    "threshold-sum": "--model models/llama --way threshold --energy sum --threshold 0.95",
    "threshold-adapter": "--model models/llama --way threshold --adapter out/train-lora",
    "threshold-minilm": "--model builtin:minilm --way threshold --adapter out/train-minilm",
    "advice": "--model models/llama --data rows/text.jsonl --way advice",
    "advice-classify": "--model models/bert --data rows/labelled.tsv --way advice",
}

PLAN = {
    "llama": "--model models/llama {a100}",
    "here": "--model models/llama --data rows/text.jsonl --rank 4",
    "rows": "--model models/llama --data rows/text.jsonl {a100} --rank 4 --epochs 2 --accumulate 2",
    "t4": "--model models/llama --device T4 --mixed-precision bf16 --delta dora --rank 4",
    "length": "--model models/llama {a100} --max-length 32 --batch-size 3 --gradient-checkpointing",
    "light": "{base} {a100} --light-checkpointing --packing off --delta loha --rank 3",
    "packed": "--model models/llama --data rows/text.jsonl {a100} --batch-tokens 200 --rank 2",
    "vera": "--model models/llama {a100} --delta vera --rank 8 --base-dtype bfloat16",
    "lokr": "--model models/llama {a100} --delta lokr --rank 4 --dtype bfloat16",
    "adalora": "--model models/llama {a100} --delta adalora --rank 4",
    "pissa": "--model models/llama {a100} --init pissa --rank 4",
    "norms": "--model models/llama {a100} --whole-modules norms --token-rows 3 4 --rank 2",
    "ranks": "--model models/llama {a100} --ranks linear --rank-budget 3000 --rank 4",
    "suggested": "--model models/llama {a100} --ranks suggested --rank 4",
    "yaml": "--model models/llama {a100} --config configs/plan.yaml",
    "gpt2": "--model models/gpt2 {a100} --bias all --rank 4",
    "tie": "--model models/tied {a100} --targets embed_tokens lm_head --tie --rank 2",
    "mixtral": "--model models/mixtral {a100} --rank 2",
    "classify": "--model models/bert --data rows/labelled.tsv {a100} --task classify --rank 4",
    "minilm": "--model builtin:minilm --device H100 --task regress --rank 8",
    "file": "--model models/llama/model.safetensors --device L4 --targets q_proj v_proj --rank 4",
    "card-gpt2": "--model card:gpt2 --device RTX4090 --targets c_attn",
    "card-roberta": "--model card:roberta-base --device A100 --targets qv --rank 8",
}

EXPLAIN = {
    "some": "example counts step graph threshold misconceptions",
    "image": "image",
    "best": "best",
    "capacity": "capacity",
    "plot": "counts --plot out/counts.png",
}

SHOWN = {
    "eval": "eval {base} --data rows/text.jsonl --adapter out/train-lora",
    "preview": "preview {base} --data rows/pairs.jsonl --show 1",
    "inspect": "inspect out/train-lora --model models/llama --with out/train-lora-again",
    "inspect-dora": "inspect out/train-dora",
    "targets": "inspect models/llama --targets",
    "plan": "plan --model models/llama {a100} --rank 4 --data rows/text.jsonl",
    "threshold": "rank --model models/llama --way threshold --adapter out/train-lora",
    "resize": "resize out/train-lora --rank 2 {out}",
    "combine": "combine out/train-lora:0.5 out/train-lora-again {out}",
    "merge": "merge {base} --adapter out/train-lora {out}",
    "extract": "extract --base models/llama --tuned models/llama-tuned --rank 2 {out}",
    "explain": "explain example counts",
    "generate": 'generate {few} --prompt "the cat"',
}

COMMANDS = {
    "train": TRAIN,
    "eval": EVAL,
    "generate": GENERATE,
    "preview": PREVIEW,
    "inspect": INSPECT,
    "merge": MERGE,
    "extract": EXTRACT,
    "resize": RESIZE,
    "combine": COMBINE,
    "rank": RANK,
    "plan": PLAN,
    "explain": EXPLAIN,
}

CONFIGS = {
    "overrides": """
        model: models/llama
        data: rows/text.jsonl
        steps: 6
        rank: 8
        lr: 1e-3
        batch-size: 8
        targets: [q_proj, up_proj, down_proj]
        overrides:
            up_proj: {rank: 2, alpha: 3, dropout: 0.1}
            layers.1.*: {scale_rule: alpha/sqrt(rank), init: gaussian, init_std: 0.1}
        """,
    "token-rows": """
        rank: 2
        targets: [v_proj]
        token_rows: {model.embed_tokens: [5, 3], lm_head: [4, 6, 7]}
        """,
    "whole": """
        rank: 2
        targets: qv
        whole_modules: [lm_head, input_layernorm]
        columns: {text: text}
        """,
    "parts": """
        rank: 3
        targets: [c_attn.k, c_fc.first]
        parts:
            c_attn: {q: 32, k: 32, v: 32}
            c_fc: {first: 64, second: 64}
        """,
    "plan": """
        rank: 4
        whole_modules: [lm_head]
        overrides: {down_proj: {rank: 7}}
        batch_size: 5
        """,
    "rank": """
        overwrite: true
        ranks: linear
        overrides: {q_proj: {rank: 2}}
        """,
    "types": """
        overwrite: 'no'
        eval_fraction: 2
        steps: 1e2
        """,
    "unknown": """
        rnk: 4
        learning_rate: 3
        rank: 2
        """,
}

"A finished run with random tables, made in a second: what the stages write, without their work."
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from subtask_kit.artifacts import input_hashes, open_run, read_table, write_json, write_table, write_tensors
from subtask_kit.leakage import leakage_report
from subtask_kit.power import power_table
from subtask_kit.splits import Plan, count_splits

KINDS = ('pistol', 'bottle', 'dice', 'cigarette', 'pills')
METHODS = ('vit', 'deit_1', 'at_sd', 'ft_sd', 'ft_sd_cc', 'ft_sd_ul')
CLEANED = ('vit_cleanlab', 'ft_sd_weighted') # rows that compare ways of cleaning
HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>'
SPLITS = dict(train=(120, 160), teacher_val=(20, 60), student_val=(60, 160), teacher_test=(20, 60), test=(80, 200))


def draw(rng, kind, px):
    "A coloured shape on a coloured ground; each kind has its own."
    hue, image = KINDS.index(kind)*50 if kind in KINDS else 200, Image.new('RGB', (px, px), tuple(rng.integers(140, 250, 3).tolist()))
    box = [px//5, px//5, px - px//5, px - px//5]
    shape = ImageDraw.Draw(image)
    colour = (hue, 40+rng.integers(0, 60), 255-hue)
    (shape.ellipse if hue % 100 else shape.rectangle)(box, fill=tuple(int(c) for c in colour))
    return np.asarray(image)


def texture(rng, px=96):
    "A picture that costs a JPEG about as much as a photograph does: soft shapes and some grain."
    soft = Image.fromarray(rng.integers(20, 236, (9, 9, 3), dtype='uint8')).resize((px, px), Image.Resampling.BICUBIC)
    return (np.asarray(soft) + rng.normal(0, 9, (px, px, 1))).clip(0, 255).astype('uint8')


def make_ads(rng, truth, defective=None):
    "ads.parquet for all splits, embargoed ads and a pool; `image_row` is the row. `defective`: how many training ads are."
    splits = SPLITS if defective is None else SPLITS | dict(train=(defective, SPLITS['train'][1]))
    parts = [dict(label=label, split=split) for split, counts in splits.items() for label, n in enumerate(counts) for _ in range(n)]
    parts += [dict(label=i % 2, split='') for i in range(10)] + [dict(label=pd.NA, split='', pool=True)]*40
    ads = pd.DataFrame(parts)
    n, defective = len(ads), (ads.label == 0).fillna(False).values
    kinds, noise = rng.choice(KINDS, n, p=[.35, .25, .2, .12, .08]), defective & (ads.split == 'train').values & (rng.random(n) < .2)
    ads = ads.assign(ad_id=[f'ad{i:05d}' for i in range(n)], path=[f'images/{i}.jpg' for i in range(n)], label=ads.label.astype('Int8'), headline=[f'offer {i}' for i in range(n)],
                     submitted_at=pd.date_range('2024-01-01', periods=n, freq='6h', tz='UTC'), advertiser=rng.choice(['acme', 'bolt', 'core'], n), impressions=rng.lognormal(5, 1, n),
                     phash='', quality=100, group=[f'ad{i:05d}' for i in range(n)], regular='', pool=ads.pool.fillna(False).astype(bool), policy='', reviewer='', image_row=np.arange(n))
    if truth: ads = ads.assign(sub_defect=np.where(defective & ~noise, kinds, ''), is_noise=pd.array(noise, 'boolean'))
    return ads


def make_pairs(rng, ads, drops):
    "pairs.parquet: what went as a copy is merged with the ad that stayed; as many pairs of strangers are not."
    gone = drops[drops.of != '']
    merged = pd.DataFrame(dict(a=gone.of, b=gone.ad_id, score=rng.uniform(.1, .99, len(gone)), row_b=ads.image_row.to_numpy()[::-1][:len(gone)]))
    apart = pd.DataFrame(rng.permutation(ads.ad_id)[:12].reshape(6, 2), columns=['a', 'b']).assign(score=rng.uniform(1.01, 3, 6))
    pairs, row = pd.concat([merged, apart]), ads.set_index('ad_id').image_row
    more = dict(kind='near-duplicate', distance=20, turn=0, how='aligned', structure=.99, detail=.1, colour=1., overlap=1., residual=10*pairs.score, merged=pairs.score <= 1,
                row_a=pairs.a.map(row), row_b=pairs.b.map(row).fillna(pairs.row_b).astype(int))
    return pairs.assign(**more).sort_values(['score', 'a', 'b'], ignore_index=True)


def make_curation(run, rng, ads, mark):
    "drops, pairs, leakage and power, as the stage `curate` writes them."
    n = ads.ad_id.tolist()
    drops = pd.DataFrame([(f'x{i}', 1000+i, 'p'+mark, 'data', i % 2, reason, n[of]) for i,(reason,of) in enumerate([('same headline', 0), ('same headline', 1), ('near-duplicate', 0), ('near-duplicate', 5)])]
                         + [('', 2000, 'p'+mark, 'data', None, 'unusable picture: cannot be decoded'+mark, '')], columns=['ad_id', 'row', 'path', 'source', 'label', 'reason', 'of']).astype(dict(label='Int8'))
    pairs, cuts = make_pairs(rng, ads, drops), {s: ads.submitted_at[ads.split.str.endswith(s)].min() for s in ('val', 'test')}
    write_table(drops, run/'13_curate/drops.parquet')
    write_table(pairs, run/'13_curate/pairs.parquet')
    plan = Plan(ads.split, 'date', cuts, pd.Series(np.where((ads.split == '') & ads.label.notna(), 'embargo', ''), ads.index), [])
    gone = drops[drops.of != ''].assign(group=lambda t: t.of, headline='', advertiser='', submitted_at=ads.submitted_at.max(), split='')
    everything = pd.concat([ads, gone], ignore_index=True)
    write_json(leakage_report(everything, ads, plan, pairs.loc[pairs.merged, ['a', 'b', 'kind']].reset_index(drop=True), 15), run/'13_curate/leakage.json')
    write_table(power_table(count_splits(ads), draws=100), run/'13_curate/power.parquet')
    return {r: {v: len(h) for v,h in g.groupby(g.label.map({0: 'defective', 1: 'acceptable'}).astype(object).fillna('no verdict'))} for r,g in drops.groupby(drops.reason.str.partition(':')[0])}


def make_older(run, mark):
    "What an older version of the stage wrote instead: no verdicts of what went, no pairs, no power, another report on leakage."
    write_table(pd.DataFrame(dict(ad_id=['x1', 'x2', None], row=[1, 2, 3], path='p'+mark, source='data', reason=['same headline', 'same headline', 'cannot be decoded'+mark], of=['ad00000', 'ad00001', None])), run/'13_curate/drops.parquet')
    write_json(dict(split_by='date', cuts=dict(val='2025-08-18T00:00:00+00:00'), duplicates_across_splits={'same bytes': 0, 'same headline': 27}, advertisers_across_splits=dict(advertisers=62, shared=62),
                    embargoed=231, dates=dict(train=dict(first='2025-01-01T01:25:50+00:00', last=None)), note=mark), run/'13_curate/leakage.json')


def make_features(run, seed=0, leaking=0):
    "What the frozen trunk leaves, a row a view; the first `leaking` test ads are seen as train ads are. Two views of a training ad."
    ads, rng = read_table(run/'13_curate/ads.parquet'), np.random.default_rng(seed)
    rows = ads.loc[(ads.split != '') | ads.pool, ['ad_id', 'split', 'label', 'image_row', 'pool']].reset_index(drop=True)
    rows['views'] = np.where((rows.split == 'train') | rows.pool, 2, 1)
    rows['first'] = rows['views'].cumsum() - rows['views']
    values = rng.normal(size=(int(rows['views'].sum()), 24))
    train, test = (rows['first'].to_numpy()[rows.split == s] for s in ('train', 'test'))
    values[test[:leaking]] = values[train[:leaking]] + .01
    write_table(rows, run/'25_features/rows.parquet')
    np.save(run.path/'25_features/pooled.npy', values.astype('float16'))
    finish(run, '25_features', inputs=input_hashes(run, ['13_curate/ads.parquet', '13_curate/images.npy']))


def make_clusters(rng, ads, k):
    "Partition, description and map of the defective training ads."
    train = ads[(ads.split == 'train') & (ads.label == 0)]
    part = pd.DataFrame(dict(ad_id=train.ad_id.values, cluster=np.sort(np.arange(len(train)) % k), confidence=rng.uniform(.3, 1, len(train))))
    xy = rng.normal(0, 1, (len(part), 2)) + 6*np.c_[np.cos(part.cluster), np.sin(part.cluster)]
    first = part.groupby('cluster').ad_id.first()
    size = part.groupby('cluster').size()
    table = pd.DataFrame(dict(cluster=range(k), name=['']*k, size=size.values, confidence=part.groupby('cluster').confidence.mean().values, advertisers=3, medoid=first.values,
                              top_advertiser_share=rng.uniform(.3, .9, k), dropped=False))
    if 'sub_defect' in ads: table = table.assign(purity=rng.uniform(.5, 1, k), noise_share=rng.uniform(0, .5, k), top_sub_defect=[KINDS[i % 5] for i in range(k)])
    return part, table, pd.DataFrame(dict(ad_id=part.ad_id, x=xy[:, 0], y=xy[:, 1], method='pca'))


def spread(rng, part):
    "Clusters of unequal size as blobs of unequal width, one beside another: (partition, map)."
    k = part.cluster.nunique()
    weight = rng.lognormal(0, .6, k)
    cluster = np.r_[np.arange(k), rng.choice(k, len(part)-k, p=weight/weight.sum())]
    xy = rng.uniform(-10, 10, (k, 2))[cluster] + rng.normal(0, 1, (len(part), 2))*rng.uniform(.2, .7, (k, 1))[cluster]
    return part.assign(cluster=cluster), pd.DataFrame(dict(ad_id=part.ad_id, x=xy[:, 0], y=xy[:, 1], method='pca'))


def make_reasons(verdict, cluster, mark=''):
    "Why, in words; the most telling first."
    first = {'kept': 'lift is surely above T', 'dropped': 'lift is surely below T', 'too close to call': 'the interval holds T'}[verdict]
    return [first + mark, f'{10 + cluster} ads', 'half of its verdicts look wrong to cleanlab' if cluster % 2 else 'few of its verdicts look wrong to cleanlab']


def make_competence(rng, clusters, older=False, mark=''):
    "One row a teacher; the last is clearly bad, the one before too close to call. `older`: as before evidence was pooled."
    table = make_measured(rng, clusters)
    if older: return table
    k, shrunken = len(table), .3 + .7*(table.lift - .3)
    below, share = np.r_[np.linspace(0, .04, k-2), .5, .99], np.linspace(.6, 1.6, k)
    return table.assign(shrunken=shrunken, shrunken_low=shrunken-.08, shrunken_high=shrunken+.08, below=below, kept_share=1-below**2, support=share, support_low=.5*share, support_high=2*share, unsupported=np.linspace(.01, 0, k),
                        suspects=np.linspace(.05, .7, k), duplicates=np.linspace(0, .3, k), busiest=clusters.get('top_advertiser_share', pd.Series(.5, clusters.index)).values, agreement=np.linspace(.9, .2, k),
                        reasons=[make_reasons(v, c, mark) for v,c in zip(table.verdict, table.cluster)])


def make_measured(rng, clusters):
    "What is measured of each teacher alone."
    k = len(clusters)
    lift = np.r_[np.linspace(.85, .35, k-2), .08, -.2]
    low, high = lift-.12, lift+.12
    verdict = np.where(low >= .1, 'kept', np.where(high < .1, 'dropped', 'too close to call'))
    return pd.DataFrame(dict(cluster=clusters.cluster, size=clusters['size'], npv=.25+.75*lift, low=.25+.75*low, high=.25+.75*high, floor=.25, lift=lift, lift_low=low, lift_high=high, literal_npv=.26,
                             literal_floor=.25, teacher_val_npv=rng.uniform(.2, .9, k), confidence=clusters.confidence, kept=verdict != 'dropped', verdict=verdict,
                             why=[f'lift {v:.2f}; by the rule "upper"' for v in lift], by='rule'))


def make_sensitivity(table):
    "Who would be kept at other levels and thresholds."
    return pd.DataFrame([dict(level=level, T=T, cluster=c, kept=high + .2*level >= T) for level in (.01, .02, .05) for T in (0., .1, .2, .4) for c,high in zip(table.cluster, table.lift_high)])


def make_worklist(rng, ads, k, n=12, mark=''):
    "Audited ads that are worth a second look."
    audited = ads[ads.split.isin(['teacher_val', 'teacher_test'])]
    some = audited.iloc[np.sort(rng.permutation(len(audited))[:n])]
    return pd.DataFrame(dict(rank=range(1, n+1), ad_id=some.ad_id.values, split=some.split.values, label=some.label.astype(int).values, clusters=[[k-2] if i % 3 else [k-2, 0] for i in range(n)],
                             gain=np.linspace(.9, .1, n), why=[f'acceptable, flagged by an unclear teacher{mark}' if l else f'defective, routed to an unclear cluster{mark}' for l in some.label]))


def make_lessons(part, table):
    "What the student learns from: members of kept clusters."
    kept = part[part.cluster.isin(table.cluster[table.kept])]
    return pd.DataFrame(dict(ad_id=kept.ad_id.values, cluster=kept.cluster.values, teacher=kept.cluster.values, verdict=pd.array([0]*len(kept), 'Int8'), weight=1.)).sort_values('ad_id', ignore_index=True)


def make_suspects(rng, ads):
    "What the out-of-fold classifier says of the training ads."
    train = ads[(ads.split == 'train') & ads.label.notna()]
    p = np.where(train.label == 0, rng.beta(4, 2, len(train)), rng.beta(2, 6, len(train)))
    return pd.DataFrame(dict(ad_id=train.ad_id.values, label=train.label.astype(int).values, p_defective=p, suspect=np.where(train.label == 0, p < .5, p > .6)))


def make_sweep(table):
    "The student against T, on student_val and test."
    rows = []
    for i, T in enumerate((0., .1, .4)):
        kept = [int(c) for c in table.cluster[table.lift_high >= T]]
        for split in ('student_val', 'test'):
            for metric, base in (('npv@1%', .3), ('npv@5%', .6)):
                v = base + .02*i + (.01 if split == 'test' else 0)
                rows.append(dict(T=T, clusters=len(kept), kept=kept, share=len(kept)/len(table), split=split, metric=metric, value=v, low=v-.1, high=v+.1, gain=.02*i, gain_low=.02*i-.05, gain_high=.02*i+.05, seeds=2))
    return pd.DataFrame(rows)


def make_filter(mark=''):
    "The filtered student against the unfiltered one: better at 5 %, not at 1 %."
    return pd.DataFrame([dict(split='student_val', metric=m, filtered='ft_sd'+mark, unfiltered='at_sd', gain=g, low=g-.05, high=g+.05, better=g > .05) for m,g in (('npv@1%', -.03), ('npv@5%', .08), ('auc', .01))])


def make_results(rng, older=False):
    "results and claims; gains differ from zero only for ft_sd."
    rows, gains = [], dict(deit_1=.01, at_sd=-.02, ft_sd=.12, ft_sd_cc=.03, ft_sd_ul=.1, vit_cleanlab=-.04, ft_sd_weighted=.07)
    for m in METHODS + (() if older else CLEANED):
        for metric in ('npv@1%', 'npv@5%', 'npv@10%', 'auc'):
            g = gains.get(m)
            rows.append(dict(method=m, metric=metric, value=.5+(g or 0), low=.44+(g or 0), high=.57+(g or 0), gain=g, gain_low=None if g is None else g-.05, gain_high=None if g is None else g+.05,
                             seeds=3, sd=.02, config_hash='abc'))
    claims = [dict(claim=c, a=a, b=b, metric=f'npv@{l}%', gain=g, low=g-.05, high=g+.05, verdict='holds' if g > .05 else 'does not' if g < -.05 else 'cannot tell')
              for c,a,b,g in (('filtered specialists help', 'ft_sd', 'vit', .12), ('CC beats interleaving', 'ft_sd_cc', 'ft_sd', -.09), ('unlabelled ads help', 'ft_sd_ul', 'ft_sd', -.02)) for l in (1, 5, 10)]
    return pd.DataFrame(rows).astype({'gain': float, 'gain_low': float, 'gain_high': float}), pd.DataFrame(claims)


def make_slices(methods):
    "slices.parquet."
    parts = [('advertiser size', '1 to 4 ads', 20), ('advertiser size', '5 to 9 ads', 30), ('month', '2024-05', 35), ('month', '2024-06', 15)]
    return pd.DataFrame([dict(method=m, slice=s, value=v, n=n, level=l, recall=1-l-n/1000, low=.7, high=1.) for m in methods for s,v,n in parts for l in (.01, .05, .1)])


PAPER_ROWS = [ # method, category, paper, paper_gain5, paper_gain1, stand_in, k, epochs
    ('vit', 'Regular fine-tuning', 'ViT-Base/16', np.nan, np.nan, False, 0, 0), ('resnext', 'Regular fine-tuning', 'ResNeXt-101', -.033, -.039, True, 0, 0), ('coatnet', 'Regular fine-tuning', 'CoAtNet-2', .012, .013, True, 0, 0),
    ('deit_1', 'Single teacher', 'DeiT-Base/16 + Teacher ResNet-50', .084, .108, False, 0, 0), ('mc', 'Self-label multi-class', '300 Epoch SL K100 + Swin-B/P4W7', .086, .108, True, 8, 12),
    ('ft_hd', 'Filtered teachers', '300 Epoch SL K100 + DeiT-Base/16 + FT + HD', .104, .151, False, 8, 12), ('ft_sd', 'Filtered teachers', '300 Epoch SL K100 + DeiT-Base/16 + FT + SD', .134, .156, False, 8, 12),
    ('noisy_student', 'Semi-supervised', 'NoisyStudent-L2', .218, .235, False, 0, 0)]
LEFT_OUT = dict(noisy_student='no unlabelled ads', ft_sd_cc_ul='no unlabelled ad is used')


def make_table2(rng):
    "rows and results of the paper's table; the last row was not trained."
    rows = pd.DataFrame(PAPER_ROWS, columns=['method', 'category', 'paper', 'paper_gain5', 'paper_gain1', 'stand_in', 'k', 'epochs'])
    def one(m, metric, g): return dict(method=m, metric=metric, value=.5+g, low=.4+g, high=.6+g, gain=np.nan if m == 'vit' else g, gain_low=np.nan if m == 'vit' else g-.06, gain_high=np.nan if m == 'vit' else g+.05,
                                       seeds=3, sd=.02, cpu_minutes=1.5, config_hash='abc')
    return rows, pd.DataFrame([one(m, metric, 0. if m == 'vit' else round(rng.normal(.05, .05), 3)) for m in rows.method[:-1] for metric in ('npv@1%', 'npv@5%', 'npv@10%', 'auc')])


def table2(run, seed=0, truth=True, mark=''):
    "43_table2, as `subtask-kit table2` leaves it in a run."
    rows, results = make_table2(np.random.default_rng(seed))
    tested = [('soft targets beat hard ones', 'ft_sd', 'ft_hd', .12, .004, 'holds'), ('one teacher helps a transformer', 'deit_1', 'vit', -.11, .03, 'does not'), ('sub-tasks as classes (K+1) beat a plain transformer', 'mc', 'vit', .09, .3, 'cannot tell'),
              ('a plain transformer beats convolution alone', 'vit', 'resnext', -.01, 1., 'cannot tell')]
    claims = pd.DataFrame([dict(claim=c+mark, a=a, b=b, metric=f'npv@{l}%', gain=g+l/1000, low=g-.05, high=g+.06, verdict=v, p=p/4, p_holm=p) for c,a,b,g,p,v in tested for l in (1, 5, 10)])
    methods, recall = rows.method[:-1], [dict(sub_defect=k+mark, n=10+i, recall=.9-i/50) for i,k in enumerate(KINDS)]
    tables = dict(rows=rows.assign(paper=rows.paper+mark, category=rows.category+mark), results=results, claims=claims, slices=make_slices(methods), scores=pd.DataFrame(dict(method=methods, seed=0)), costs=pd.DataFrame(dict(method=methods, seed=0, cpu_minutes=1.5)))
    if truth: tables['recall'] = pd.DataFrame([dict(method=m, level=l, low=.6, high=.95, **r) for m in methods for l in (.01, .05, .1) for r in recall])
    for name, t in tables.items(): write_table(t, run/f'43_table2/{name}.parquet')
    write_json({m: why+mark for m,why in LEFT_OUT.items()}, run/'43_table2/left_out.json')
    finish(run, '43_table2', dict(rows=len(methods), test_defects=80, warning=''), config=dict(rows=list(methods), seeds=[0, 1, 2]))


def make_scores(rng, ads):
    "p_acceptable of every method and seed on student_val, teacher_test and test."
    judged = ads[ads.split.isin(['student_val', 'teacher_test', 'test'])]
    def one(m, s):
        p = np.where(judged.label.to_numpy(int) == 1, rng.beta(8, 2, len(judged)), rng.beta(2, 8, len(judged)))
        return pd.DataFrame(dict(method=m, seed=s, ad_id=judged.ad_id.values, split=judged.split.values, p_acceptable=p))
    return pd.concat([one(m, s) for m in METHODS for s in range(3)], ignore_index=True)


def losses(rng, epochs=6, **more):
    "A falling history."
    e = np.arange(epochs)
    return pd.DataFrame(dict(epoch=e, loss=.7*.8**e + rng.uniform(0, .02, epochs), val_loss=.7*.85**e + rng.uniform(0, .05, epochs), **more))


def finish(run, stage, metrics=None, seconds=1.5, **spec):
    "Write a stage's metrics and manifest, as `artifacts.stage` does."
    out = run/stage
    write_json(metrics or {}, out/'metrics.json')
    files = [p for p in sorted(out.rglob('*')) if p.is_file() and p.name != 'manifest.json']
    outputs = {str(p.relative_to(out)): dict(sha256=hashlib.sha256(p.read_bytes()).hexdigest(), bytes=p.stat().st_size) for p in files}
    write_json(dict(key='k', spec=dict(stage=stage, schema=1, config=spec.get('config', {}), inputs=spec.get('inputs', {})), why=['first run'], metrics=metrics or {}, outputs=outputs,
                    versions=dict(python='3.11'), started='2024-01-01T00:00:00', seconds=seconds), out/'manifest.json')


def evaluation(run, rng, ads, truth, older=False, mark=''):
    "41_evaluate."
    results, claims = make_results(rng, older)
    write_table(make_scores(rng, ads), run/'41_evaluate/scores.parquet')
    write_table(results, run/'41_evaluate/results.parquet')
    write_table(claims, run/'41_evaluate/claims.parquet')
    write_table(pd.DataFrame([dict(method=m, seed=s, level=l, threshold=.4, student_val_fpr=l, test_fpr=l*1.3, test_npv=.6, low=.5, high=.7) for m in METHODS for s in range(3) for l in (.01, .05, .1)]),
                run/'41_evaluate/operating.parquet')
    if truth: write_table(pd.DataFrame([dict(method=m, sub_defect=k, n=10+i, level=l, recall=1-l, low=.7, high=1.) for m in METHODS for i,k in enumerate(KINDS) for l in (.01, .05, .1)]), run/'41_evaluate/recall.parquet')
    if not older:
        write_table(make_filter(mark), run/'41_evaluate/filter.parquet')
        write_table(make_slices(METHODS), run/'41_evaluate/slices.parquet')
    finish(run, '41_evaluate', dict(prevalence=.286, test_defects=80, **({} if older else dict(warning='the filtered student is not better at npv@1%'+mark))), config=dict(coverage=.9, baseline='vit'))


def make_fake_run(path, k=6, px=32, seed=0, truth=True, until='41_evaluate', hostile=False, defective=None, pictures=None, older=False, failed=0):
    """Fill the folder `path` with what a run holds after the stage `until`; `hostile` puts markup into everything that comes from data.
    `defective` training ads in uneven clusters instead of a handful; `pictures` textures shared by all ads instead of one drawing an ad; `older`: before there were pairs and power, and before evidence on teachers was pooled.
    `failed`: so many teachers, from the third on, could not be trained."""
    run, rng = open_run(Path(path), create=True), np.random.default_rng(seed)
    ads = make_ads(rng, truth, defective)
    part, clusters, points = make_clusters(rng, ads, k)
    if defective:
        part, points = spread(rng, part)
        clusters = clusters.assign(size=part.groupby('cluster').size().values, confidence=part.groupby('cluster').confidence.mean().values, medoid=part.groupby('cluster').ad_id.first().values)
    if pictures: ads['image_row'] = np.arange(len(ads)) % pictures
    if hostile:
        ads['headline'] = ads['path'] = HOSTILE
        ads['advertiser'] = [HOSTILE + ' '*(i % 3) for i in range(len(ads))]
        clusters['name'] = HOSTILE
        if truth: ads.loc[ads.sub_defect != '', 'sub_defect'] = clusters['top_sub_defect'] = HOSTILE
    mark, lost = HOSTILE if hostile else '', list(range(2, 2+failed))
    write_json(dict(data='ads.csv'+mark, unlabelled='', preset='tiny', parameters={}), run/'run.json')

    def curate():
        drawn = [texture(rng, px) for _ in range(pictures)] if pictures else [draw(rng, kind, px) for kind in (ads.sub_defect if truth else ['']*len(ads))]
        np.save(run.path/'13_curate/images.npy', np.stack(drawn))
        write_table(ads, run/'13_curate/ads.parquet')
        dropped = make_older(run, mark) if older else make_curation(run, np.random.default_rng(seed), ads, mark)
        return dict(warnings=['no dates'+mark], **({} if older else dict(dropped=dropped)))
    def selflabel():
        write_table(part, run/'31_selflabel/assignments.parquet')
        write_table(pd.DataFrame(dict(strength=[0., .5], told=[.1, .3], told_sd=.01, halves=[.5, .6], halves_sd=.02, chosen=[False, True])), run/'31_selflabel/starts.parquet')
        write_table(pd.DataFrame(dict(round=range(5), loss=1., marginal_error=1e-7, agreement=[None, .6, .8, .9, .95], confidence=.7, moved=.1, passes=4)), run/'31_selflabel/history.parquet')
    def describe():
        for name, t in (('partition', part), ('clusters', clusters), ('map', points)): write_table(t, run/f'32_clusters/{name}.parquet')
        if not older: write_table(make_suspects(np.random.default_rng(seed), ads), run/'32_clusters/suspects.parquet')
    def teach():
        write_table(ads[['ad_id', 'split', 'label']].assign(row=np.arange(len(ads))), run/'33_specialists/rows.parquet')
        error = {} if older else dict(error=['MemoryError: out of memory'+mark if c in lost else '' for c in range(k)])
        write_table(pd.DataFrame(dict(position=range(k), cluster=range(k)) | error), run/'33_specialists/clusters.parquet')
        sure, own = np.where(ads.label.fillna(0).to_numpy(int) == 1, 1.5, -1.5)[:, None, None].astype('float32'), np.random.default_rng(seed)
        margins = (sure + own.standard_normal((len(ads), 2, k), 'float32')).astype('float16')
        margins[:, :, lost] = np.nan
        write_tensors(dict(margins=margins), run/'33_specialists/margins.safetensors')
        for c in [*range(k), 'whole_task']: write_table(losses(rng), run/'33_specialists/teachers'/(c if c == 'whole_task' else f'{c:03d}')/'history.parquet')
        if older: return {}
        audited, routed = (np.flatnonzero((ads.split.isin(some) | (ads.split == also) & (ads.label == 0)).to_numpy(bool)) for some, also in ((['teacher_val', 'teacher_test'], '-'), (['teacher_val', 'student_val', 'teacher_test'], 'train')))
        write_tensors(dict(rows=audited, margins=np.stack([margins[audited, 0]]*3)), run/'33_specialists/epochs.safetensors')
        write_tensors(dict(rows=routed, probability=own.dirichlet(np.full(k, .2), len(routed)).astype('float32')), run/'33_specialists/routing.safetensors')
        return dict(teachers=k-failed, wanted=k, unfinished=failed)
    def select():
        table = make_competence(rng, clusters, older, mark)
        table.loc[table.cluster.isin(lost), [c for c in table if table[c].dtype == float and c not in ('confidence', 'suspects', 'duplicates', 'busiest')]] = np.nan
        table.loc[table.cluster.isin(lost), ['kept', 'verdict', 'why']] = [False, 'dropped', 'there is no teacher for it']
        write_table(table, run/'34_select/competence.parquet')
        if not older:
            for name, t in (('sensitivity', make_sensitivity(table)), ('worklist', make_worklist(np.random.default_rng(seed), ads, k, mark=mark)), ('lessons', make_lessons(part, table))): write_table(t, run/f'34_select/{name}.parquet')
        return dict(T=.1, prevalence=.25, kept=int(table.kept.sum()), by='rule', warning=mark) | ({} if older else dict(level=.02, expected_false_keeps=.6, expected_false_drops=.1))
    def order(): write_json(dict(method='cc', order=list(range(k-1)), scores={str(c): .5 for c in range(k-1)}, by='rule', acceptable='shared', seed=0), run/'35_curriculum/curriculum.json')
    def route():
        pool = ads[ads.pool]
        write_table(pd.DataFrame(dict(ad_id=pool.ad_id.values, cluster=0, confidence=.6, margin=-2., used=np.arange(len(pool)) % 2 == 0, why='the teacher is not sure')), run/'36_unlabelled/routed.parquet')
    def distill():
        for m in METHODS:
            for s in range(3): write_table(losses(rng, cosine=.2), run/'37_distill'/m/str(s)/'history.parquet')
        write_json(dict(method='ft_sd', seed=1, by='rule'), run/'37_distill/student.json')
    def sweep(): write_table(make_sweep(read_table(run/'34_select/competence.parquet')), run/'39_sweep/sweep.parquet')

    stages = {'13_curate': curate, '25_features': lambda: None, '31_selflabel': selflabel, '32_clusters': describe, '33_specialists': teach, '34_select': select, '35_curriculum': order,
              '36_unlabelled': route, '37_distill': distill, '39_sweep': sweep, '41_evaluate': lambda: evaluation(run, rng, ads, truth, older, mark)}
    config = {'31_selflabel': dict(seed=0, k=k, epochs=12), '34_select': dict(seed=0, T=.1, scale='lift'), '39_sweep': dict(seeds=(0, 1), T=(0., .1, .4))}
    for name, work in stages.items():
        if older and name == '39_sweep': continue
        (run/name).mkdir(parents=True, exist_ok=True)
        metrics = work()
        if name != '41_evaluate': finish(run, name, metrics, config=config.get(name, dict(seed=0)))
        if name == until: break
    return run

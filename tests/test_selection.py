"Competence, rules, warnings, a person's choice and the stage of selection."
import dataclasses
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from subtask_kit.artifacts import open_run, read_table, write_json, write_table, write_tensors
from subtask_kit.core import UserError
from subtask_kit.metrics import bootstrap_npv, interval, npv_at, npv_floor
from subtask_kit.selection import COLUMNS, RULES, Select, competence, judge, overrule, read_choice, save_choice, select, sweep, undo_choice, warn_low_T

LITERAL = Select(rate_of='defective', level=.01, scale='npv', rule='estimate')


def teachers(seed=0, knows=(5., 3., 1., 0.), n_d=150, n_a=450):
    "Margins of specialists that know a fifth of the defects to a degree; the last one flags a harmless kind."
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 1, (n_d+n_a, len(knows)))
    for k, push in enumerate(knows): margins[k*n_d//5:(k+1)*n_d//5, k] -= push
    margins[n_d:n_d+n_a//15, -1] -= 5
    return margins, np.repeat([0, 1], [n_d, n_a])


def make_run(path, dropped=(), sizes=(50, 40, 30, 20), labels=None):
    "A run in which specialists and clusters are done; teachers in a shuffled order, cluster numbers with a gap, one cluster without a teacher."
    margins, y = teachers()
    order = np.random.default_rng(1).permutation(len(y))
    n, run = len(y), open_run(path, create=True)
    split = np.where(np.arange(n) % 3 == 0, 'teacher_val', 'teacher_test')
    whole = np.full((n+5, 2, 4), np.nan, 'float16') # rows of the array in another order than the table, views beyond the first empty
    whole[order, 0] = margins
    label = pd.array(y if labels is None else labels, 'Int8')
    rows = pd.DataFrame(dict(row=np.r_[order, np.arange(n, n+5)], ad_id=[f'ad{i}' for i in range(n+5)], split=np.r_[split, ['train']*3, ['', '']],
                             label=pd.array([*label, 0, 1, 1, None, None], 'Int8')))
    write_table(rows.sample(frac=1, random_state=0), run/'33_specialists/rows.parquet')
    write_table(pd.DataFrame(dict(position=[2, 0, 3, 1], cluster=[5, 0, 9, 2])), run/'33_specialists/clusters.parquet')
    write_tensors({'margins': whole}, run/'33_specialists/margins.safetensors')
    write_table(pd.DataFrame(dict(cluster=[0, 2, 5, 7, 9], size=[*sizes[:3], 7, sizes[3]], confidence=[.9, .8, .7, .1, .6],
                                  dropped=[c in dropped for c in (0, 2, 5, 7, 9)])), run/'32_clusters/clusters.parquet')
    for folder in ('33_specialists', '32_clusters'):
        names = [p.name for p in (run/folder).iterdir() if p.name != 'manifest.json']
        write_json({'key': '', 'outputs': {name: {'sha256': f'{folder}/{name}', 'bytes': 0} for name in names}}, run/folder/'manifest.json')
    return run


def result(run, cfg=Select(draws=100)):
    return select(cfg, run), read_table(run/'34_select/competence.parquet').set_index('cluster')


def test_competence_is_the_metrics_of_each_column():
    margins, labels = teachers()
    table = competence(margins, labels, Select(draws=50, seed=3))
    for k in range(4):
        low, high = interval(bootstrap_npv(margins[:, k], labels, .02, 'acceptable', 50, 3))
        assert table.loc[k, ['npv', 'low', 'high']].tolist() == pytest.approx([npv_at(margins[:, k], labels, .02, 'acceptable'), low, high])
        assert table.literal_npv[k] == npv_at(margins[:, k], labels, .01)
    assert (table.floor == .25).all() and np.allclose(table.literal_floor, npv_floor(.25, .01))
    assert np.allclose(table.lift, (table.npv-.25)/.75) and (table.lift_low <= table.lift_high).all()


def test_noise_is_seen_by_the_default_and_not_by_the_literal_measure():
    for seed in range(5):
        margins, labels = teachers(seed)
        kept = judge(competence(margins, labels, Select(draws=100)), Select()).kept
        assert kept.tolist() == [True, True, True, False]
        assert judge(competence(margins, labels, LITERAL), LITERAL).kept.all()


def table_of(*rows): return pd.DataFrame(rows, columns=['lift', 'lift_low', 'lift_high']).assign(npv=.9, low=.8, high=1.)


def test_rules_and_verdicts():
    table = table_of((.5, .3, .7), (.2, .05, .4), (.05, -.1, .2), (0., -.2, .05), (.1, .1, .1), (0., -.1, .1))
    for rule, kept in dict(upper=[1, 1, 1, 0, 1, 1], estimate=[1, 1, 0, 0, 1, 0], none=[1]*6).items():
        judged = judge(table, Select(rule=rule))
        assert judged.kept.astype(int).tolist() == kept and judged.kept.dtype == bool
        assert (judged.verdict == 'too close to call').tolist() == [False, True, True, False, False, True]
        clear = judged[judged.verdict != 'too close to call']
        assert ((clear.verdict == 'kept') == clear.kept).all()
        assert judged.why.str.contains(f'by the rule "{rule}"').all()
    assert judge(table, Select(scale='npv')).kept.all() # compared with the plain NPV, .9
    assert judge(table.assign(high=.3), Select(scale='npv', T=.5)).kept.sum() == 0


def test_rules_are_a_plug_in(monkeypatch):
    monkeypatch.setitem(RULES, 'lower', lambda estimate, low, high, T: low >= T)
    assert judge(table_of((.5, .3, .7), (.2, .05, .4)), Select(rule='lower')).kept.tolist() == [True, False]


def test_unknown_names_are_the_users_mistake():
    for wrong in (dict(rule='uper'), dict(scale='log'), dict(rate_of='harmless')):
        with pytest.raises(UserError, match='one of'): Select(**wrong)


def test_a_T_that_can_do_nothing_warns():
    floor = npv_floor(160/1120, .01)
    with pytest.warns(UserWarning, match='nobody can be dropped'): assert warn_low_T(LITERAL, floor)
    with pytest.warns(UserWarning, match='at random'): warn_low_T(Select(T=0), .2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for cfg in (Select(), dataclasses.replace(LITERAL, T=.15), dataclasses.replace(LITERAL, rule='none')): assert warn_low_T(cfg, floor) == ''


def test_what_the_warning_says_is_true():
    "Below the floor nobody is dropped, whatever the scores."
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [160, 960])
    worst = np.r_[np.full(159, 1.), 2., np.zeros(960)]
    table = competence(np.c_[rng.random((1120, 10)), worst], labels, LITERAL)
    assert judge(table, LITERAL).kept.all() and not judge(table, dataclasses.replace(LITERAL, T=.145)).kept.all()


def test_sweep_shrinks_with_T():
    margins, labels = teachers()
    table = competence(margins, labels, Select(draws=100)).assign(cluster=[3, 1, 4, 0], size=[50, 40, 30, 20])
    found = sweep(table, Select())
    assert (found.clusters.diff().dropna() <= 0).all() and (found.share.diff().dropna() <= 0).all()
    assert all(set(b) <= set(a) for a, b in zip(found.kept, found.kept[1:]))
    at = found[np.isclose(found['T'], .1)].iloc[0]
    assert at.kept == table.cluster[judge(table, Select()).kept].tolist() and at.share == pytest.approx(120/140)
    assert sweep(pd.concat([table, pd.DataFrame([dict(cluster=7, size=9)])]), Select()).equals(found) # a cluster without a teacher counts for nothing


def test_stage_writes_the_contracted_table(tmp_path):
    manifest, table = result(make_run(tmp_path))
    assert ['cluster', *table.columns] == COLUMNS and table.kept.dtype == bool
    assert table.kept.to_dict() == {0: True, 2: True, 5: True, 7: False, 9: False}
    assert table.why[7] == 'there is no teacher for it' and np.isnan(table.npv[7]) and (table.by == 'rule').all()
    margins, y = teachers()
    test, val = np.arange(600) % 3 != 0, np.arange(600) % 3 == 0
    for k, cluster in enumerate([0, 2, 5, 9]):
        column = margins[:, k].astype('float16')
        assert table.npv[cluster] == npv_at(column[test], y[test], .02, 'acceptable')
        assert table.teacher_val_npv[cluster] == npv_at(column[val], y[val], .02, 'acceptable')
    m = manifest['metrics']
    assert (m['kept'], m['clusters'], m['by'], m['warning'], m['T']) == (3, 5, 'rule', '', .1) and m['share'] == pytest.approx(120/147)
    json.dumps(m)


def test_stage_is_fresh_and_repeats_itself(tmp_path):
    run = make_run(tmp_path)
    first, table = result(run)
    assert result(run)[0]['started'] == first['started']
    (run/'34_select/manifest.json').unlink()
    again, table2 = result(run)
    assert again['outputs'] == first['outputs'] and table2.equals(table)


def test_a_person_overrules_the_rule(tmp_path):
    run = make_run(tmp_path, dropped=[2])
    _, table = result(run)
    assert not table.kept[2] and table.by[2] == 'person' and 'dropped by a person' in table.why[2] and table.by[0] == 'rule'
    write_json({'kept': [9, 2]}, run/'human/choice.json')
    manifest, table = result(run)
    assert table.index[table.kept].tolist() == [9] and (table.by == 'person').all() and manifest['metrics']['by'] == 'person'
    assert table.verdict[9] == 'kept' and not np.isnan(table.npv[9]) # the figures stay


def test_a_persons_T_counts(tmp_path):
    run = make_run(tmp_path)
    write_json({'T': .75}, run/'human/choice.json')
    manifest, table = result(run)
    assert manifest['metrics']['T'] == .75 and manifest['metrics']['by'] == 'person' and not table.kept[5] and 'T = 0.75' in table.why[0]
    write_json({'T': 2}, run/'human/choice.json')
    with pytest.raises(UserError, match='rule none'): result(run)
    assert not (run/'34_select/manifest.json').exists()


def test_literal_settings_warn_from_the_stage(tmp_path):
    with pytest.warns(UserWarning, match='nobody can be dropped'): manifest, table = result(make_run(tmp_path), dataclasses.replace(LITERAL, draws=20))
    assert 'floor' in manifest['metrics']['warning'] and table.kept.to_dict() == {0: True, 2: True, 5: True, 7: False, 9: True}


def test_an_empty_kept_set_is_refused(tmp_path):
    with pytest.raises(UserError, match='lower it'): result(make_run(tmp_path, dropped=[0, 2, 5, 9]))


@pytest.mark.parametrize('text', ['{"kept": [0, ', '[]', '{"kept": "0"}', '{"kept": [0, 0]}', '{"kept": [true]}', '{"T": "x"}', '{"keep": [0]}', '{"order": {"0": 1}}'])
def test_a_choice_that_cannot_be_used_is_named(tmp_path, text):
    run = open_run(tmp_path)
    (tmp_path/'human').mkdir()
    (tmp_path/'human/choice.json').write_text(text)
    with pytest.raises(UserError, match='choice.json'): read_choice(run)


def test_choice_may_be_absent_or_partial(tmp_path):
    assert read_choice(open_run(tmp_path)) == {}
    write_json({'kept': None, 'T': .3, 'author': 'me'}, tmp_path/'human/choice.json')
    assert read_choice(open_run(tmp_path))['T'] == .3 and 'kept' not in read_choice(open_run(tmp_path))


def test_a_chosen_cluster_without_a_teacher_is_refused(tmp_path):
    run = make_run(tmp_path)
    for unknown in ([7], [0, 77]):
        write_json({'kept': unknown}, run/'human/choice.json')
        with pytest.raises(UserError, match='no teacher'): result(run)


def test_overruling_is_the_persons_word_and_a_drop_the_last():
    table = judge(table_of((.5, .3, .7), (.2, .05, .4), (.05, -.1, .2), (0., -.2, .05)), Select()).assign(cluster=[4, 1, 9, 2])
    before = table.copy()
    assert overrule(table, [], None).drop(columns='by').equals(before) and (overrule(table, [], None).by == 'rule').all() and table.equals(before)
    t = overrule(table, [4, 77], [4, 2]).set_index('cluster')
    assert t.kept.to_dict() == {4: False, 1: False, 9: False, 2: True} and (t.by == 'person').all() and t.why[4] == 'dropped by a person: edit of the clusters'
    assert (t.verdict == np.where(t.kept, 'kept', 'dropped')).all()
    t = overrule(table, [1], None).set_index('cluster')
    assert t.by.to_dict() == {4: 'rule', 1: 'person', 9: 'rule', 2: 'rule'} and t.kept[4] and not t.kept[1]
    with pytest.raises(UserError, match=r'\[77\]'): overrule(table, [], [4, 77])
    assert not overrule(table, [], []).kept.any(), 'an empty list keeps nobody; None leaves it to the rule'


def test_a_saved_T_counts_and_one_that_was_taken_back_does_not(tmp_path):
    run = make_run(tmp_path)
    _, rule = result(run)
    save_choice(run, T=.75)
    manifest, table = result(run)
    assert manifest['metrics']['T'] == .75 and not table.kept[5] and manifest['why'] == ['inputs.human/choice.json']
    undo_choice(run)
    manifest, table = result(run)
    assert manifest['metrics'] | dict(T=.1) == manifest['metrics'] and table.equals(rule)

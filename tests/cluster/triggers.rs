//! Triggers: those of the origin fire there, ENABLE ALWAYS and ENABLE REPLICA ones where it is applied.

use crate::support::{PATIENCE, TestGroup, group, until_committed};
use postgres::Client;
use std::collections::BTreeMap;

/// A table of each kind with triggers of each kind, that say in an unlogged table that they have fired. Their
/// names begin with how they are enabled.
const SEEN: &str = "
CREATE UNLOGGED TABLE seen (enabled text, relation text, event text, old text, new text, who text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.seen VALUES (split_part(TG_NAME, '_', 1), TG_TABLE_NAME, concat_ws(' ', TG_WHEN, TG_LEVEL, TG_OP), OLD::text, NEW::text, current_user);
  IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$;
CREATE ROLE keeper;
CREATE TABLE plain (id int4 PRIMARY KEY, v text, w int4, long int4 GENERATED ALWAYS AS (length(v)) STORED, short int4 GENERATED ALWAYS AS (w / 2));
CREATE TABLE parts (id int4 PRIMARY KEY, v text, w int4) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100); CREATE TABLE parts_high PARTITION OF parts DEFAULT;
CREATE TABLE guarded (id int4 PRIMARY KEY, v text, w int4); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON guarded USING (w > 0);
CREATE TABLE keyless (id int4, v text, w int4);
GRANT ALL ON ALL TABLES IN SCHEMA public TO keeper; GRANT ALL ON SCHEMA public TO keeper;
DO $$ DECLARE t text; kind text; at text; BEGIN
  FOREACH t IN ARRAY '{plain,parts,guarded,keyless}'::text[] LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO keeper', t);
    FOREACH kind IN ARRAY '{origin,always,replica}'::text[] LOOP
      FOREACH at IN ARRAY '{before,after}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER %s_%s %s INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION see()', kind, at, at, t);
        EXECUTE format('CREATE TRIGGER %s_all_%s %s TRUNCATE ON %s EXECUTE FUNCTION see()', kind, at, at, t);
        EXECUTE format('CREATE TRIGGER %s_statement_%s %s UPDATE ON %s EXECUTE FUNCTION see()', kind, at, at, t);
      END LOOP;
      EXECUTE format('CREATE TRIGGER %s_of AFTER UPDATE OF w ON %s FOR EACH ROW WHEN (OLD.v IS DISTINCT FROM NEW.v) EXECUTE FUNCTION see()', kind, t);
    END LOOP;
  END LOOP;
END $$;
DO $$ DECLARE t record; BEGIN
  FOR t IN SELECT tgname, tgrelid::regclass AS rel, split_part(tgname, '_', 1) AS kind FROM pg_trigger WHERE NOT tgisinternal AND tgname !~ '^origin' AND tgparentid = 0 LOOP
    EXECUTE format('ALTER TABLE %s ENABLE %s TRIGGER %I', t.rel, t.kind, t.tgname);
  END LOOP;
END $$;
";

/// What triggers said on a member, without order, and how often.
fn seen(group: &TestGroup, member: usize) -> BTreeMap<String, i64> {
    let sql = "SELECT concat_ws(' | ', enabled, relation, event, old, new), count(*) FROM seen GROUP BY 1";
    let rows = group.client(member).query(sql, &[]).expect("seen");
    rows.iter().map(|r| (r.get(0), r.get(1))).collect()
}

fn of(all: &BTreeMap<String, i64>, enabled: &str) -> BTreeMap<String, i64> {
    let ours = all.iter().filter(|(what, _)| what.starts_with(enabled));
    ours.map(|(what, n)| (what.replacen(enabled, "", 1), *n))
        .collect()
}

fn forget(group: &TestGroup) {
    for member in 1..=3 {
        group.execute(member, "TRUNCATE seen");
    }
}

const CHANGES: [&str; 7] = [
    "INSERT INTO plain SELECT i, 'v' || i, i FROM generate_series(1, 100) i; INSERT INTO keyless SELECT i % 3, 'v', i % 2 FROM generate_series(1, 6) i;
     INSERT INTO parts VALUES (1, 'a', 1), (2, 'b', 2), (300, 'c', 3); INSERT INTO guarded VALUES (1, 'seen', 1), (2, 'unseen', 0)",
    "UPDATE plain SET w = w + 1, v = 'new' WHERE id < 10; UPDATE plain SET w = -w WHERE id < 5; UPDATE plain SET v = repeat('long', 5000) WHERE id = 7; UPDATE keyless SET v = 'w', w = 9 WHERE id = 1;
     UPDATE parts SET v = 'moved', w = 7, id = id + 400 WHERE id = 2; UPDATE guarded SET w = w + 1, v = 'x'",
    "BEGIN; INSERT INTO plain VALUES (200, 'two', 2); UPDATE plain SET v = 'three' WHERE id = 200; UPDATE plain SET w = 4, v = 'four' WHERE id = 200; DELETE FROM plain WHERE id = 200; COMMIT",
    "BEGIN; INSERT INTO keyless VALUES (7, 'a', 1); UPDATE keyless SET v = 'b' WHERE id = 7; UPDATE keyless SET v = 'c' WHERE id = 7; DELETE FROM keyless WHERE id IN (0, 7); COMMIT",
    "BEGIN; DELETE FROM plain WHERE id > 90; SAVEPOINT s; DELETE FROM plain; ROLLBACK TO s; DELETE FROM parts WHERE id = 1; COMMIT",
    "TRUNCATE parts, keyless",
    "BEGIN; INSERT INTO keyless VALUES (1, 'gone', 1); TRUNCATE keyless, guarded; INSERT INTO keyless VALUES (1, 'there', 1); COMMIT",
];

#[test]
fn each_kind_fires_where_it_should() {
    let group = group("triggers", 3, SEEN);
    for (i, sql) in CHANGES.into_iter().enumerate() {
        let origin = i % 3 + 1;
        forget(&group);
        group.execute(origin, sql);
        group.wait_in_step(PATIENCE).expect("in step");
        let here = seen(&group, origin);
        let always = of(&here, "always");
        assert!(!always.is_empty(), "{sql}");
        assert_eq!(of(&here, "origin"), always, "{sql}");
        assert_eq!(of(&here, "replica"), BTreeMap::new(), "{sql}");
        // Those of statements fire only where there is one; TRUNCATE is applied as it was.
        let applied: BTreeMap<String, i64> = (always.iter())
            .filter(|(what, _)| !what.contains("STATEMENT UPDATE"))
            .filter(|(what, _)| !(what.contains("ROW UPDATE") && what.contains("moved")))
            .map(|(what, n)| (what.clone(), *n))
            .collect();
        for other in (1..=3).filter(|m| *m != origin) {
            let there = seen(&group, other);
            assert_eq!(of(&there, "always"), applied, "member {other}: {sql}");
            assert_eq!(of(&there, "replica"), applied, "member {other}: {sql}");
            assert_eq!(
                of(&there, "origin"),
                BTreeMap::new(),
                "member {other}: {sql}"
            );
        }
    }
    group.assert_identical();
    let owner = "SELECT count(*) FROM seen WHERE who <> 'keeper'";
    forget(&group);
    // A session in that role is no other than on one server.
    group.execute(
        1,
        "SET session_replication_role = replica; INSERT INTO guarded VALUES (5, 'five', 5)",
    );
    group.wait_in_step(PATIENCE).expect("in step");
    for member in 1..=3 {
        let there = seen(&group, member);
        assert_eq!(of(&there, "always").len(), 2, "member {member}");
        assert_eq!(of(&there, "replica"), of(&there, "always"));
        assert_eq!(of(&there, "origin"), BTreeMap::new());
        let strangers: i64 = group
            .client(member)
            .query_one(owner, &[])
            .expect(owner)
            .get(0);
        assert_eq!(strangers == 0, member != 1, "member {member}");
    }
    for member in 1..=3 {
        assert_eq!(group.state(member).trigger_errors, 0, "member {member}");
    }
    group.assert_identical();
}

/// Triggers that do on other members what they may not, or fail; and one that does what it should.
const BAD: &str = "
CREATE TABLE t (id int4 PRIMARY KEY, v int4); CREATE TABLE third (v int4); INSERT INTO third VALUES (0); CREATE TABLE other (v int4); CREATE SEQUENCE numbers;
CREATE UNLOGGED TABLE counted (n int8); CREATE UNLOGGED TABLE spoiled (what text);
CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.spoiled VALUES (TG_NAME);
  EXECUTE TG_ARGV[0];
  IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$;
CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := -1; RETURN NEW; END $$;
CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.counted VALUES (1); RETURN NEW; END $$;
DO $$ DECLARE bad text; n int4 := 0; BEGIN
  FOREACH bad IN ARRAY ARRAY['SELECT 1 / 0', 'INSERT INTO public.other VALUES (1)', 'UPDATE public.third SET v = 9', 'DELETE FROM public.third', 'TRUNCATE public.other',
      'SELECT nextval(''public.numbers'')', 'SELECT setval(''public.numbers'', 7)', 'NOTIFY c', 'LISTEN c', 'SELECT pg_notify(''c'', '''')', 'CREATE TABLE public.made ()', 'CREATE TEMP TABLE made ()',
      'SELECT lo_create(0)', 'COPY public.other FROM PROGRAM ''echo 1''', 'INSERT INTO other VALUES (1)', 'SELECT pg_advisory_lock(1)'] LOOP
    n := n + 1;
    EXECUTE format('CREATE TRIGGER bad_%s %s INSERT ON t FOR EACH ROW EXECUTE FUNCTION bad(%L)', n, CASE WHEN n % 2 = 0 THEN 'BEFORE' ELSE 'AFTER' END, bad);
  END LOOP;
END $$;
CREATE TRIGGER bad_when BEFORE INSERT ON t FOR EACH ROW WHEN (1 / (NEW.v - 5) < 5) EXECUTE FUNCTION tally();
CREATE TRIGGER change BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION change();
CREATE TRIGGER suppress BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION suppress();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bad('SELECT 1 / 0');
CREATE TRIGGER zz_counted BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION tally();
CREATE TRIGGER zz_counted_after AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION tally();
ALTER TABLE other ADD CONSTRAINT positive CHECK (v > 0);
CREATE TRIGGER all_bad BEFORE TRUNCATE ON other EXECUTE FUNCTION bad('SELECT 1 / 0');
CREATE TRIGGER zz_all AFTER TRUNCATE ON other EXECUTE FUNCTION tally();
DO $$ DECLARE t record; BEGIN
  FOR t IN SELECT tgname, tgrelid::regclass AS rel FROM pg_trigger WHERE NOT tgisinternal LOOP EXECUTE format('ALTER TABLE %s ENABLE REPLICA TRIGGER %I', t.rel, t.tgname); END LOOP;
END $$;
";
/// How many of these fail for a row that is inserted with a value of 5, `bad_when` and `late` among them.
const FAIL: u64 = 18;

#[test]
fn what_a_trigger_does_elsewhere_changes_nothing_that_is_replicated() {
    let group = group("triggers-bad", 3, BAD);
    // Somebody has an advisory lock, and keeps it beyond transactions.
    let mut holder: Vec<Client> = (1..=3).map(|m| group.client(m)).collect();
    for holder in &mut holder {
        holder
            .batch_execute("SELECT pg_advisory_lock(1)")
            .expect("lock");
    }
    for (member, sql) in [
        (1, "INSERT INTO t VALUES (1, 5), (2, 5)"),
        (
            2,
            "UPDATE t SET v = 6 WHERE id = 1; DELETE FROM t WHERE id = 2",
        ),
        (
            1,
            "INSERT INTO other VALUES (3); TRUNCATE other; INSERT INTO other VALUES (4)",
        ),
    ] {
        group.execute(member, sql);
        group.wait_in_step(PATIENCE).expect("in step");
    }
    assert_eq!(group.assert_identical(), 3);
    let count = |member: usize, sql: &str| -> i64 {
        group.client(member).query_one(sql, &[]).expect(sql).get(0)
    };
    assert_eq!(count(3, "SELECT count(*) FROM t WHERE id = 1 AND v = 6"), 1);
    // Rows that came, changed and went, each before and after; and TRUNCATE.
    let (rows, all) = ([0, 2, 2], [0, 1, 1]);
    for member in 1..=3 {
        let n = member - 1;
        let others = if member == 2 { 0 } else { 2 };
        assert_eq!(
            count(member, "SELECT count(*) FROM counted"),
            rows[n] * 2 + others * 2 + all[n],
            "member {member}"
        );
        assert_eq!(count(member, "SELECT count(*) FROM spoiled"), 0);
        let failures = rows[n] as u64 * FAIL + all[n] as u64;
        assert_eq!(
            group.state(member).trigger_errors,
            failures,
            "member {member}"
        );
    }
    // Once for all rows of a transaction.
    let log = group.member(3).expect("member").log_tail(10_000);
    let told = log.matches("trigger \"bad_2\" of table \"t\" failed for transaction");
    assert_eq!(told.count(), 1, "{log}");
}

/// A trigger that all transactions meet in, on a table of each member's own.
const COUNTER: &str = "
CREATE TABLE t (id serial PRIMARY KEY, v int4);
CREATE UNLOGGED TABLE counter (n int8);
CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE public.counter SET n = n + 1; RETURN NULL; END $$;
CREATE TRIGGER counted AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tally(); ALTER TABLE t ENABLE ALWAYS TRIGGER counted;
";

#[test]
fn triggers_of_all_members_meet_in_one_row() {
    const EACH: i64 = 40;
    let group = group("triggers-meet", 3, COUNTER);
    // What is unlogged is not in a copy.
    for member in 1..=3 {
        group.execute(member, "INSERT INTO counter VALUES (0)");
    }
    // `also`: something that only the session has, so that no helper can do it in its place.
    let insert = |also: &str| {
        std::thread::scope(|scope| {
            for member in [1, 1, 2, 2, 3, 3] {
                let group = &group;
                scope.spawn(move || {
                    let mut client = group.client(member);
                    for i in 0..EACH as i32 {
                        until_committed(&mut client, |t| {
                            t.execute("INSERT INTO t (v) VALUES ($1)", &[&i])?;
                            t.batch_execute(also)
                        })
                        .unwrap_or_else(|e| panic!("member {member}: {e:?}"));
                    }
                });
            }
        });
        group.wait_in_step(PATIENCE).expect("in step");
    };
    let counted = |member: usize| -> i64 {
        let sql = "SELECT n FROM counter";
        group.client(member).query_one(sql, &[]).expect(sql).get(0)
    };
    insert("");
    for member in 1..=3 {
        assert_eq!(counted(member), 6 * EACH, "member {member}");
        assert_eq!(group.state(member).trigger_errors, 0, "member {member}");
    }
    insert("UPDATE counter SET n = n");
    for member in 1..=3 {
        let failed = group.state(member).trigger_errors as i64;
        assert_eq!(counted(member) + failed, 12 * EACH, "member {member}");
    }
    group.assert_identical();
}

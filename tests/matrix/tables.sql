--- Kinds of tables: each is {t}, in a schema {s} of its own, with the columns id, a and b at least.
--- Every statement of statements.sql runs on each of them. Rows with a from 0 to 4 and b as text are put
--- in before replication starts.
--
--- table: NAME      begins one
--- key: COLUMNS     what ON CONFLICT names
--- role: NAME       who runs statements
--- fill: SQL        puts in rows, in place of the usual INSERT
--- apart            values may be others than on one server (from sequences)
--- unlogged         each member has rows of its own
--- temporary        made by the session

-- table: plain
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);

-- table: two unique keys
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, c int4 GENERATED ALWAYS AS (id * 2) STORED UNIQUE);

-- table: key without a hash
-- key: k
CREATE TABLE {t} (id int4, a int4, b text, k varbit GENERATED ALWAYS AS (id::bit(32)::varbit) STORED PRIMARY KEY);

-- table: expression and partial unique keys
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE UNIQUE INDEX ON {t} ((id * 10), lower(b));
CREATE UNIQUE INDEX ON {t} (id) WHERE a > 2;
CREATE INDEX ON {t} (lower(b)) WHERE a IS NOT NULL;

-- table: every index
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE INDEX ON {t} USING btree (a) INCLUDE (b);
CREATE INDEX ON {t} USING hash (b);
CREATE INDEX ON {t} USING gin (b gin_trgm_ops);
CREATE INDEX ON {t} USING gist (a, b gist_trgm_ops);
CREATE INDEX ON {t} USING spgist (left(b, 100));
CREATE INDEX ON {t} USING brin (a, id);
CREATE INDEX ON {t} USING bloom (a, id);

-- table: summarizing index alone
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text) WITH (fillfactor = 50);
CREATE INDEX ON {t} USING brin (a);

-- table: NULLS NOT DISTINCT
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, c int4);
CREATE UNIQUE INDEX ON {t} (id, c) NULLS NOT DISTINCT;

-- table: composite key
-- key: b, id
CREATE TABLE {t} (a int4, b text, id int4, PRIMARY KEY (b, id));

-- table: partitioned by list
-- key: id, a
CREATE TABLE {t} (id int4, a int4, b text, PRIMARY KEY (id, a)) PARTITION BY LIST (a);
CREATE TABLE {t}_low PARTITION OF {t} FOR VALUES IN (0, 1, 2);
CREATE TABLE {t}_high PARTITION OF {t} FOR VALUES IN (3, 4);
CREATE TABLE {t}_rest PARTITION OF {t} DEFAULT;

-- table: partitioned by range
-- key: id, a
CREATE TABLE {t} (id int4, a int4, b text, PRIMARY KEY (id, a)) PARTITION BY RANGE (a);
CREATE TABLE {t}_low PARTITION OF {t} FOR VALUES FROM (MINVALUE) TO (2);
CREATE TABLE {t}_high PARTITION OF {t} FOR VALUES FROM (2) TO (MAXVALUE);

-- table: partitioned by hash
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text) PARTITION BY HASH (id);
CREATE TABLE {t}_0 PARTITION OF {t} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES WITH (MODULUS 2, REMAINDER 1);

-- table: partitioned on two levels, columns in other orders
-- key: id, a, b
CREATE TABLE {t} (id int4, a int4, b text, PRIMARY KEY (id, a, b)) PARTITION BY RANGE (a);
CREATE TABLE {t}_low (b text NOT NULL, gone int4, id int4 NOT NULL, a int4 NOT NULL) PARTITION BY HASH (id);
ALTER TABLE {t}_low DROP COLUMN gone;
ALTER TABLE {t} ATTACH PARTITION {t}_low FOR VALUES FROM (MINVALUE) TO (2);
CREATE TABLE {t}_low_0 PARTITION OF {t}_low FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE {t}_low_1 (gone text, a int4 NOT NULL, id int4 NOT NULL, b text NOT NULL);
ALTER TABLE {t}_low_1 DROP COLUMN gone;
ALTER TABLE {t}_low ATTACH PARTITION {t}_low_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE {t}_rest PARTITION OF {t} DEFAULT PARTITION BY LIST (a);
CREATE TABLE {t}_rest_2 PARTITION OF {t}_rest FOR VALUES IN (2);
CREATE TABLE {t}_rest_rest PARTITION OF {t}_rest DEFAULT;

-- table: inherited
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {t}_child (c int4 DEFAULT 5, PRIMARY KEY (id)) INHERITS ({t});
CREATE TABLE {t}_other (d text, PRIMARY KEY (id)) INHERITS ({t});
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i WHERE i % 3 = 0
-- fill: INSERT INTO {t}_child SELECT i, i % 5, 'b' || i FROM {rows} i WHERE i % 3 = 1
-- fill: INSERT INTO {t}_other SELECT i, i % 5, 'b' || i FROM {rows} i WHERE i % 3 = 2

-- table: row-level security
-- key: id
-- role: limited
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;
CREATE POLICY seen ON {t} USING (id % 2 = 0) WITH CHECK (a < 1000);
GRANT ALL ON {t} TO limited;

-- table: column privileges
-- key: id
-- role: limited
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, secret int4 DEFAULT 1);
GRANT SELECT (id, a, b), INSERT (id, a, b), UPDATE (a, b), DELETE ON {t} TO limited;

-- table: generated stored columns
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, c text GENERATED ALWAYS AS (b || '+') STORED, d int4 GENERATED ALWAYS AS (a * 2) STORED);
CREATE INDEX ON {t} (c);

-- table: generated virtual columns
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, v int4 GENERATED ALWAYS AS (a * 2) VIRTUAL, b text, w text GENERATED ALWAYS AS (b || '+'));

-- table: identity column
-- key: id
-- apart
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, n int8 GENERATED ALWAYS AS IDENTITY);

-- table: serial column
-- key: id
-- apart
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, n bigserial UNIQUE);

-- table: columns of sequences of all kinds
-- key: id
-- apart
CREATE SEQUENCE {s}.wheel MINVALUE 3 MAXVALUE 7 START 5 CYCLE;
CREATE SEQUENCE {s}.down INCREMENT -3 MAXVALUE 10 START 10 CACHE 5 MINVALUE -30000;
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, s2 smallserial, s4 serial, s8 bigserial,
    wheel int4 DEFAULT nextval('{s}.wheel'), down int4 DEFAULT nextval('{s}.down'), i2 int2 GENERATED ALWAYS AS IDENTITY (INCREMENT BY -2 CYCLE),
    i4 int4 GENERATED BY DEFAULT AS IDENTITY (MINVALUE -50 START -20 CACHE 7), i8 int8 GENERATED ALWAYS AS IDENTITY (INCREMENT BY 1000000007));

-- table: unlogged
-- key: id
-- unlogged
CREATE UNLOGGED TABLE {t} (id int4 PRIMARY KEY, a int4, b text);

-- table: temporary
-- key: id
-- temporary
CREATE TEMPORARY TABLE {t} (id int4 PRIMARY KEY, a int4, b text);

-- table: deferrable unique key
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, c int4 DEFAULT 0, UNIQUE (id, c) DEFERRABLE INITIALLY DEFERRED);

-- table: deferrable primary key
CREATE TABLE {t} (id int4 PRIMARY KEY DEFERRABLE INITIALLY IMMEDIATE, a int4, b text);

-- table: exclusion constraint
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, EXCLUDE USING gist (int4range(id, id, '[]') WITH &&));

-- table: temporal key
CREATE TABLE {t} (id int4, a int4, b text, during daterange NOT NULL DEFAULT '[2000-01-01,2001-01-01)', PRIMARY KEY (id, during WITHOUT OVERLAPS));

-- table: parent of a temporal foreign key
CREATE TABLE {t} (id int4, a int4, b text, during daterange NOT NULL DEFAULT '[2000-01-01,2001-01-01)', PRIMARY KEY (id, during WITHOUT OVERLAPS));
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4, during daterange NOT NULL, FOREIGN KEY (parent, PERIOD during) REFERENCES {t} (id, PERIOD during));
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {s}.child SELECT i, i, '[2000-03-01,2000-06-01)' FROM {rows} i WHERE i % 2 = 0

-- table: child by a temporal foreign key
-- key: id
CREATE TABLE {s}.parent (p int4, during daterange, PRIMARY KEY (p, during WITHOUT OVERLAPS));
INSERT INTO {s}.parent SELECT i, d FROM generate_series(0, 20) i, unnest('{"[2000-01-01,2000-07-01)","[2000-07-01,2001-01-01)"}'::daterange[]) d;
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, during daterange NOT NULL DEFAULT '[2000-03-01,2000-10-01)', FOREIGN KEY (a, PERIOD during) REFERENCES {s}.parent (p, PERIOD during));

-- table: replica identity using an index
-- key: id
CREATE TABLE {t} (id int4 NOT NULL, a int4, b text);
CREATE UNIQUE INDEX {i}_identity ON {t} (id);
ALTER TABLE {t} REPLICA IDENTITY USING INDEX {i}_identity;

-- table: replica identity full
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
ALTER TABLE {t} REPLICA IDENTITY FULL;

-- table: replica identity nothing
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
ALTER TABLE {t} REPLICA IDENTITY NOTHING;

-- table: without a key
CREATE TABLE {t} (id int4, a int4, b text);
CREATE INDEX ON {t} (id);

-- table: without a key, identity full
CREATE TABLE {t} (id int4, a int4, b text);
ALTER TABLE {t} REPLICA IDENTITY FULL;

-- table: dropped columns
-- key: id
CREATE TABLE {t} (x text, id int4 PRIMARY KEY, y int8, a int4, z numeric, b text);
INSERT INTO {t} SELECT 'x', i, 1, i % 5, 2.5, 'b' || i FROM {rows} i;
ALTER TABLE {t} DROP COLUMN x, DROP COLUMN y, DROP COLUMN z;
-- fill: SELECT 1

-- table: columns with a fast default
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4);
INSERT INTO {t} SELECT i, i % 5 FROM {rows} i;
ALTER TABLE {t} ADD COLUMN b text DEFAULT 'fast', ADD COLUMN c numeric DEFAULT 1.50, ADD COLUMN d text, ADD COLUMN e int4 NOT NULL DEFAULT 7;
-- fill: SELECT 1

-- table: 1,600 columns
-- key: id
DO $$ BEGIN EXECUTE (SELECT 'CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, ' || string_agg('c' || i || CASE i % 3 WHEN 0 THEN ' bool DEFAULT true' WHEN 1 THEN ' int2' ELSE ' "char" DEFAULT ''x''' END, ', ') || ')' FROM generate_series(4, 1600) i); END $$;

-- table: stored plain
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text STORAGE PLAIN);

-- table: stored external
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text STORAGE EXTERNAL, c text STORAGE EXTERNAL DEFAULT repeat('unchanged ', 1000));

-- table: stored extended, pglz
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text COMPRESSION pglz, c text COMPRESSION pglz DEFAULT repeat('0123456789 unchanged ', 2000));

-- table: stored extended, lz4
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text COMPRESSION lz4, c text COMPRESSION lz4 DEFAULT repeat('0123456789 unchanged ', 2000));

-- table: stored main
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text STORAGE MAIN COMPRESSION lz4) WITH (toast_tuple_target = 128);

-- table: wide key
-- key: k
CREATE TABLE {t} (id int4, a int4, b text, k text STORAGE EXTERNAL PRIMARY KEY DEFAULT '' );
CREATE FUNCTION {s}.widen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.k := repeat('k', 2300) || NEW.id; RETURN NEW; END $$;
CREATE TRIGGER widen BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.widen();

-- table: domains and checks
-- key: id
CREATE TABLE {t} (id positive PRIMARY KEY, a int4 CHECK (a < 1000), b text, c word DEFAULT 'w' NOT NULL);

-- table: trigger before each row
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'DELETE' THEN RETURN CASE WHEN OLD.a = 3 THEN NULL ELSE OLD END; END IF;
    NEW.b := NEW.b || '!'; RETURN NEW; END $$;
CREATE TRIGGER tr BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();

-- table: triggers in C
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, words tsvector, who text);
CREATE TRIGGER words BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger(words, 'pg_catalog.simple', b);
CREATE TRIGGER who BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION insert_username(who);
CREATE TRIGGER z_redundant BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();

-- table: triggers in C that take values and the time
-- key: id
-- apart
CREATE SEQUENCE {s}.numbers;
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, n int4, at timestamptz);
CREATE TRIGGER number BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION autoinc('n', '{s}.numbers');
CREATE TRIGGER at BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION moddatetime(at);

-- table: trigger in C that removes large objects
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text, l lo);
CREATE TRIGGER tr BEFORE UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION lo_manage(l);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i, lo_from_bytea(3000000000 + i::oid::int8, 'some') FROM {rows} i

-- table: trigger after each row
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.effects (id int4 PRIMARY KEY, inserted int4 NOT NULL DEFAULT 0, updated int4 NOT NULL DEFAULT 0, deleted int4 NOT NULL DEFAULT 0);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO {s}.effects AS e VALUES (CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END, (TG_OP = 'INSERT')::int, (TG_OP = 'UPDATE')::int, (TG_OP = 'DELETE')::int)
    ON CONFLICT (id) DO UPDATE SET inserted = e.inserted + excluded.inserted, updated = e.updated + excluded.updated, deleted = e.deleted + excluded.deleted;
    RETURN NULL; END $$;
CREATE TRIGGER tr AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();

-- table: triggers of statements, transition tables
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.effects (what text PRIMARY KEY, statements int4, rows int8);
CREATE FUNCTION {s}.b() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO {s}.effects AS e VALUES ('before ' || TG_OP, 1, 0) ON CONFLICT (what) DO UPDATE SET statements = e.statements + 1; RETURN NULL; END $$;
CREATE FUNCTION {s}.n() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n int8; BEGIN SELECT count(*) INTO n FROM new_rows;
    INSERT INTO {s}.effects AS e VALUES (TG_OP, 1, n) ON CONFLICT (what) DO UPDATE SET statements = e.statements + 1, rows = e.rows + n; RETURN NULL; END $$;
CREATE FUNCTION {s}.o() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n int8; BEGIN SELECT count(*) INTO n FROM old_rows;
    INSERT INTO {s}.effects AS e VALUES (TG_OP, 1, n) ON CONFLICT (what) DO UPDATE SET statements = e.statements + 1, rows = e.rows + n; RETURN NULL; END $$;
CREATE TRIGGER before BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION {s}.b();
CREATE TRIGGER inserts AFTER INSERT ON {t} REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {s}.n();
CREATE TRIGGER updates AFTER UPDATE ON {t} REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {s}.n();
CREATE TRIGGER deletes AFTER DELETE ON {t} REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {s}.o();

-- table: constraint trigger, deferred
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.effects (id int4 PRIMARY KEY, n int4);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO {s}.effects AS e VALUES (NEW.id, 1) ON CONFLICT (id) DO UPDATE SET n = e.n + 1; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER tr AFTER INSERT OR UPDATE ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.f();

-- table: trigger DISABLEd
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.b := 'from a trigger that is off'; RETURN NEW; END $$;
CREATE TRIGGER tr BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();
ALTER TABLE {t} DISABLE TRIGGER tr;

-- table: trigger ENABLE ALWAYS
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE UNLOGGED TABLE {s}.effects (id int4);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {s}.effects VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER tr AFTER INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();
ALTER TABLE {t} ENABLE ALWAYS TRIGGER tr;

-- table: trigger ENABLE REPLICA
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE UNLOGGED TABLE {s}.effects (id int4);
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {s}.effects VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER tr AFTER INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();
ALTER TABLE {t} ENABLE REPLICA TRIGGER tr;

-- table: view
-- key: id
CREATE TABLE {s}.base (id int4 PRIMARY KEY, a int4, b text, c int4 DEFAULT 3);
CREATE VIEW {t} AS SELECT b, a, id FROM {s}.base WHERE a < 1000 WITH CHECK OPTION;

-- table: view with INSTEAD OF triggers
CREATE TABLE {s}.base (id int4 PRIMARY KEY, pair int4[], b text);
CREATE VIEW {t} AS SELECT id, pair[1] a, b FROM {s}.base;
CREATE FUNCTION {s}.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' THEN INSERT INTO {s}.base VALUES (NEW.id, ARRAY[NEW.a, 0], NEW.b); RETURN NEW;
    ELSIF TG_OP = 'UPDATE' THEN UPDATE {s}.base SET id = NEW.id, pair[1] = NEW.a, b = NEW.b WHERE id = OLD.id; RETURN NEW;
    ELSE DELETE FROM {s}.base WHERE id = OLD.id; RETURN OLD; END IF; END $$;
CREATE TRIGGER tr INSTEAD OF INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.f();

-- table: rules DO ALSO
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.effects (id int4, what text, n int4 DEFAULT 0, PRIMARY KEY (id, what));
INSERT INTO {s}.effects SELECT i, w FROM {rows} i, unnest('{inserted,updated,deleted}'::text[]) w;
CREATE RULE i AS ON INSERT TO {t} DO ALSO UPDATE {s}.effects SET n = n + 1 WHERE id = NEW.id AND what = 'inserted';
CREATE RULE u AS ON UPDATE TO {t} DO ALSO UPDATE {s}.effects SET n = n + 1 WHERE id = OLD.id AND what = 'updated';
CREATE RULE d AS ON DELETE TO {t} DO ALSO UPDATE {s}.effects SET n = n + 1 WHERE id = OLD.id AND what = 'deleted';

-- table: rules DO INSTEAD
CREATE TABLE {s}.base (id int4 PRIMARY KEY, a int4, b text);
CREATE VIEW {t} AS SELECT id, a, b || '' AS b FROM {s}.base;
CREATE RULE i AS ON INSERT TO {t} DO INSTEAD INSERT INTO {s}.base VALUES (NEW.id, NEW.a, NEW.b) RETURNING *;
CREATE RULE u AS ON UPDATE TO {t} DO INSTEAD UPDATE {s}.base SET id = NEW.id, a = NEW.a, b = NEW.b WHERE id = OLD.id RETURNING *;
CREATE RULE d AS ON DELETE TO {t} DO INSTEAD DELETE FROM {s}.base WHERE id = OLD.id RETURNING *;

-- table: parent, ON DELETE and ON UPDATE CASCADE
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4 REFERENCES {t} ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE {s}.grandchild (id int4 PRIMARY KEY, parent int4 REFERENCES {s}.child ON DELETE CASCADE);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {s}.child SELECT i, i FROM {rows} i
-- fill: INSERT INTO {s}.grandchild SELECT i, i FROM {rows} i

-- table: parent, SET NULL
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4 REFERENCES {t} ON DELETE SET NULL ON UPDATE SET NULL);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {s}.child SELECT i, i FROM {rows} i

-- table: parent, SET DEFAULT
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4 DEFAULT 0 REFERENCES {t} ON DELETE SET DEFAULT ON UPDATE SET DEFAULT);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {t} VALUES (0, 0, 'default')
-- fill: INSERT INTO {s}.child SELECT i, i FROM {rows} i

-- table: parent, RESTRICT
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4 REFERENCES {t} ON DELETE RESTRICT ON UPDATE RESTRICT);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {s}.child SELECT i, i FROM {rows} i WHERE i % 2 = 0

-- table: parent, NO ACTION, deferred
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE TABLE {s}.child (id int4 PRIMARY KEY, parent int4 REFERENCES {t} DEFERRABLE INITIALLY DEFERRED);
-- fill: INSERT INTO {t} SELECT i, i % 5, 'b' || i FROM {rows} i
-- fill: INSERT INTO {s}.child SELECT i, i FROM {rows} i WHERE i % 2 = 0

-- table: child of itself and of a partitioned parent
-- key: id
CREATE TABLE {s}.parent (p int4 PRIMARY KEY) PARTITION BY RANGE (p);
CREATE TABLE {s}.parent_0 PARTITION OF {s}.parent FOR VALUES FROM (MINVALUE) TO (3);
CREATE TABLE {s}.parent_1 PARTITION OF {s}.parent DEFAULT;
INSERT INTO {s}.parent SELECT generate_series(0, 20);
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4 REFERENCES {s}.parent, b text, self int4 REFERENCES {t} ON DELETE CASCADE);

-- table: published
-- key: id
CREATE TABLE {t} (id int4 PRIMARY KEY, a int4, b text);
CREATE PUBLICATION {i}_all FOR TABLE {t};

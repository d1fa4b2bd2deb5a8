-- The tables of all specifications; nothing is defined once the group runs. A child comes after its
-- parent.

CREATE EXTENSION injection_points;
CREATE EXTENSION amcheck;
CREATE EXTENSION citext;

CREATE TABLE item (id int4 PRIMARY KEY, v int4 NOT NULL);
CREATE VIEW item_view AS SELECT * FROM item;

CREATE TABLE parent (id int4 PRIMARY KEY, code int4 UNIQUE, v int4 NOT NULL DEFAULT 0);
CREATE TABLE child (id int4 PRIMARY KEY, parent int4 NOT NULL REFERENCES parent);
CREATE TABLE late_child (id int4 PRIMARY KEY, parent int4 NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE follower (id int4 PRIMARY KEY, parent int4 NOT NULL REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);

CREATE TABLE loose (id int4 PRIMARY KEY, parent int4 REFERENCES parent ON DELETE SET NULL);

-- Its rows are named by a column that is not its primary key.
CREATE TABLE named (id int4 PRIMARY KEY, code text NOT NULL UNIQUE, v int4 NOT NULL);
ALTER TABLE named REPLICA IDENTITY USING INDEX named_code_key;
CREATE TABLE named_child (id int4 PRIMARY KEY, named int4 NOT NULL REFERENCES named);

CREATE TABLE person (id int4 PRIMARY KEY, email text UNIQUE, v int4 NOT NULL DEFAULT 0);
CREATE TABLE place (id int4 PRIMARY KEY, n int4 UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE booking (id int4 PRIMARY KEY, days int4range, EXCLUDE USING gist (days WITH &&));

-- Bits have no hash function.
CREATE TABLE coarse (id int4 PRIMARY KEY, b bit(3) UNIQUE);

-- Values that are equal and not the same bytes.
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TYPE pair AS (n numeric, t text);
CREATE DOMAIN amounts AS numeric[];
CREATE TABLE alike (
  id int4 PRIMARY KEY, n numeric UNIQUE, f float8 UNIQUE, c char(5) UNIQUE, i interval UNIQUE, a numeric[] UNIQUE,
  j jsonb UNIQUE, r numrange UNIQUE, s nummultirange UNIQUE, p pair UNIQUE, d amounts UNIQUE, ci citext UNIQUE,
  co text COLLATE caseless UNIQUE, t text);
CREATE UNIQUE INDEX ON alike (lower(t));
CREATE UNIQUE INDEX ON alike ((id / 100)) WHERE t IS NULL AND id > 99;
CREATE TABLE lone (id int4 PRIMARY KEY, v int4, UNIQUE NULLS NOT DISTINCT (v));

-- Searched by parts of its indexes.
CREATE TABLE visit (id int4 PRIMARY KEY, who text, at int8, v int4 NOT NULL DEFAULT 0, state int4, mark bit(2));
CREATE INDEX ON visit (who, at DESC);
CREATE INDEX ON visit (at);
CREATE INDEX ON visit USING hash (v);
CREATE INDEX ON visit (state, mark);
CREATE INDEX ON visit ((id % 10)) WHERE who IS NULL;

CREATE TABLE stay (room int4range, nights daterange, guest text, PRIMARY KEY (room, nights WITHOUT OVERLAPS));
CREATE TABLE meal (id int4 PRIMARY KEY, room int4range, nights daterange, FOREIGN KEY (room, PERIOD nights) REFERENCES stay (room, PERIOD nights));

CREATE TABLE part (id int4, region text, v int4, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_n PARTITION OF part FOR VALUES IN ('n');
CREATE TABLE part_s PARTITION OF part FOR VALUES IN ('s');

-- Nothing but all that a row holds names it.
CREATE TABLE plain (a int4, b int4);
CREATE TABLE plain_parent (code int4 UNIQUE, v int4);
CREATE TABLE plain_child (id int4 PRIMARY KEY, code int4 REFERENCES plain_parent (code));

CREATE TABLE pile (id int4 PRIMARY KEY, v int4);
CREATE TABLE pile_child (id int4 PRIMARY KEY, pile int4 REFERENCES pile);

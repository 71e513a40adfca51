CREATE TABLE products (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  description text NOT NULL DEFAULT '',
  price numeric(12, 2) NOT NULL CHECK (price >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  -- Set by a delete; the row goes once index and cache have forgotten the product.
  deleted_at timestamptz,
  -- Goes with the document into the index, so that a late write never undoes a newer one.
  version bigint NOT NULL DEFAULT 1,
  -- When the last change reached the index; null: not yet.
  indexed_at timestamptz
);
CREATE INDEX products_by_age ON products (created_at DESC, id) WHERE deleted_at IS NULL;
CREATE INDEX products_not_indexed ON products (created_at) WHERE indexed_at IS NULL;

-- The index that the products were written to, by its UUID: another one there means that all have to be written again.
CREATE TABLE search_index (
  one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
  uuid text NOT NULL
);

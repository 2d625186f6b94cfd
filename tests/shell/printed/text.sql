SELECT 'naïve 日本語 😀 👩‍👩‍👧 ✓' AS s, E'two\nlines\tand a tab' AS lines, 'comma, "quote"' AS quotes, ' ' AS blank, E'\x1b[31mred' AS escape;
SELECT 1 AS "a b", 2 AS "a b", 3 AS "ключ", 4 AS "q""uote";

const STYLE = `*{box-sizing:border-box}body{margin:0;font:16px/1.5 system-ui,sans-serif;color:#1c2430;background:#f5f6f8}
header{background:#1d3557;color:#fff}header div,main{max-width:60rem;margin:auto;padding:1rem}header div{display:flex;gap:1rem;align-items:center;flex-wrap:wrap}
header a{color:#fff;font-weight:700;text-decoration:none;margin-right:auto}main a{color:#1d3557}
input,textarea,button{font:inherit;padding:.4rem .6rem;border:1px solid #b8c0cc;border-radius:.3rem}button{background:#2a6f97;border-color:#2a6f97;color:#fff;cursor:pointer}
ul{list-style:none;padding:0;display:grid;gap:.75rem}li,article,form.card{background:#fff;border:1px solid #dde1e7;border-radius:.4rem;padding:.75rem 1rem}
li a{font-weight:600}.price{float:right;font-variant-numeric:tabular-nums}p{margin:.25rem 0}form.card{display:grid;gap:.5rem;max-width:30rem}`;

/** Text made safe for HTML content and quoted attributes. */
export function escape(text) {
  return String(text).replace(/[&<>"']/g, (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[char]);
}

const price = (value) => `$${Number(value).toFixed(2)}`;
const item = ({ id, name, description, price: cost }) => `<li><span class="price">${price(cost)}</span><a href="/products/${encodeURIComponent(id)}">${escape(name)}</a><p>${escape(description)}</p></li>`;
const list = (items, empty) => (items.length ? `<ul>${items.map(item).join('\n')}</ul>` : `<p>${empty}</p>`);

function page(title, body, query = '') {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)} - CitadelBuy</title>
<style>${STYLE}</style>
</head>
<body>
<header><div><a href="/">CitadelBuy</a><form action="/search" role="search"><input type="search" name="q" value="${escape(query)}" maxlength="200" aria-label="Search products"> <button>Search</button></form></div></header>
<main>
<h1>${escape(title)}</h1>
${body}
</main>
</body>
</html>
`;
}

export const homePage = (items) => page('Products', `${list(items, 'No products yet.')}
<h2>New product</h2>
<form class="card" method="post" action="/products">
<label>Name <input name="name" required maxlength="200"></label>
<label>Description <input name="description" maxlength="5000"></label>
<label>Price <input name="price" type="number" min="0" max="99999999.99" step="0.01" required></label>
<button>Create</button>
</form>`);

export const searchPage = (query, items) => page('Search', query ? list(items, `Nothing found for ${escape(query)}.`) : '<p>What are you looking for?</p>', query);

export const productPage = (product) => page(product.name, `<article><span class="price">${price(product.price)}</span><p>${escape(product.description)}</p></article>`);

export const problemPage = (status, message, requestId) => page(`${status}`, `<p>${escape(message)}</p><p>Request ${escape(requestId)}</p>`);

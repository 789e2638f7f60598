// Look at report pages: screenshots at 390 and 1280 px, light and dark, and axe's violations (exit code 1 for any).
//   apt-get install chromium; npm install --no-save axe-core playwright-core
//   NODE_PATH=node_modules node scripts/page_shots.js FOLDER report.html...
const fs = require('fs');
const path = require('path');
const { chromium } = require('playwright-core');

const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const [out, ...files] = process.argv.slice(2);

(async () => {
  fs.mkdirSync(out, { recursive: true });
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
  let bad = 0;
  for (const file of files) for (const colorScheme of ['light', 'dark']) for (const width of [390, 1280]) {
    // the policy of the page would refuse axe's script
    const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
    const page = await context.newPage();
    const fetched = [];
    page.on('request', request => { if (!/^(file|data):/.test(request.url())) fetched.push(request.url()); });
    await page.goto('file://' + path.resolve(file));
    const name = path.resolve(file).split('/').slice(-3).join('_').replace('.html', '');
    await page.screenshot({ path: path.join(out, `${name}-${colorScheme}-${width}.png`), fullPage: true });
    await page.evaluate(() => document.querySelectorAll('details').forEach(one => { one.open = true; }));
    const isWide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run(document));
    const found = [
      ...violations.map(one => `${one.id}: ${one.help}: ${one.nodes[0].target.join(' ')}`),
      ...fetched.map(url => `fetched ${url}`),
      ...(isWide ? ['wider than the window'] : []),
    ];
    bad += found.length;
    console.log([`${name} ${colorScheme} ${width}: ${found.length} violations`, ...found].join('\n  '));
    await context.close();
  }
  await browser.close();
  process.exit(bad ? 1 : 0);
})();

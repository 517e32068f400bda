// The plan as a tree: one trunk per group for the steps taken together, a branch for each image after it.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 34;
const THUMB = 26;
const TOP = 30;

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** groups: [{size, shared, members: [{number, prompt, src}]}], steps: of every image; width in pixels. */
export function drawTree(groups, steps, width) {
  const rows = groups.reduce((sum, group) => sum + rowsOf(group), 0);
  const height = TOP + rows * ROW + (groups.length - 1) * (ROW / 3) + 4;
  const labels = width > 560 ? Math.min(420, Math.round(width * 0.58)) : 66; // room for words, or for a number only
  const left = 6;
  const right = width - labels;
  const x = (step) => left + ((right - left) * step) / steps;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": inWords(groups, steps) });

  for (const step of new Set([0, ...groups.map((group) => group.shared), steps])) {
    svg.append(shape("path", { class: "grid", d: `M${x(step)} ${TOP - 8}V${height}` }));
    const anchor = step === 0 ? "start" : "middle";
    svg.append(shape("text", { class: "soft", x: step === 0 ? 2 : x(step), y: 12, "text-anchor": anchor }, step === 0 ? "step 0" : step));
  }

  let y = TOP;
  for (const group of groups) {
    const count = rowsOf(group);
    const middle = y + (count * ROW) / 2;
    const fork = x(group.shared);
    const bend = Math.min(right, fork + Math.min(44, (right - fork) * 0.5));
    for (let row = 0; row < count; row += 1) {
      const at = y + row * ROW + ROW / 2;
      const member = group.members[row];
      const path = group.shared ? `M${fork} ${middle}C${(fork + bend) / 2} ${middle} ${(fork + bend) / 2} ${at} ${bend} ${at}H${right}` : `M${left} ${at}H${right}`;
      const kind = member ? (group.shared ? "" : "alone") : "others";
      svg.append(shape("path", { class: `branch ${kind}`, d: path }));
      if (member) label(svg, member, right + 8, at, width);
      else svg.append(shape("text", { class: "soft", x: right + 8, y: at + 4 }, width > 560 ? `${others(group)} of other requests` : `+ ${others(group)}`));
    }
    if (group.shared) svg.append(shape("path", { class: "trunk", d: `M${left} ${middle}H${fork}` }));
    y += count * ROW + ROW / 3;
  }
  return svg;
}

const others = (group) => group.size - group.members.length;
const rowsOf = (group) => group.members.length + (others(group) > 0 ? 1 : 0);

function label(svg, member, x, y, width) {
  svg.append(shape("image", { href: member.src, x, y: y - THUMB / 2, width: THUMB, height: THUMB, preserveAspectRatio: "xMidYMid slice" }));
  const room = Math.floor((width - x - THUMB - 22) / 6.25);
  const words = room < 12 ? "" : ` ${member.prompt.length > room ? `${member.prompt.slice(0, room - 1).trimEnd()}…` : member.prompt}`;
  const text = shape("text", { x: x + THUMB + 8, y: y + 4.5 });
  text.append(shape("tspan", { "font-weight": 600 }, member.number), words);
  svg.append(text);
}

function inWords(groups, steps) {
  const said = groups.map((group) => {
    const numbers = group.members.map((member) => member.number).join(", ");
    if (!group.shared) return `Image ${numbers} takes all ${steps} steps alone.`;
    const with_ = others(group) > 0 ? ` and ${others(group)} of other requests` : "";
    return `${group.members.length > 1 ? "Images" : "Image"} ${numbers}${with_} share the first ${group.shared} of ${steps} steps.`;
  });
  return `Plan as a tree. ${said.join(" ")}`;
}

// Draws the linear avatar of this page: its Gaussians are moved, coloured and projected by the
// vertex shader, sorted here. Conventions are those of the renderer that it was trained with:
// quaternions wxyz, OpenCV view axes (x right, y down, z forward), the local affine projection of
// EWA splatting, alpha at most 0.999 and ignored below 1/255.
//
// Space: canonical, in dm, of the head at its mean pose; y up, z out of the face. The torso stays
// there while the head moves by a pose (quaternion, translation).
"use strict";

const WIDTH = 1024; // of the textures that hold a value per Gaussian
const MAX_PIXEL_RATIO = 1.5; // finer than the avatar is; phones have 3
const STILL = [1, 0, 0, 0, 0, 0, 0]; // the pose of the head at rest

const page = JSON.parse(document.getElementById("header").textContent);
const LOW_PASS = page.low_pass.toFixed(3); // variance in pixels² of the training, as there
const canvas = document.querySelector("canvas");

// --- The data --------------------------------------------------------------------------------

/** The arrays of the page by name: codes, and the value low + step · code of each column. */
async function readArrays() {
  const text = atob(document.getElementById("data").textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const arrays = {};
  let start = 0;
  for (const { name, type, shape, low, step } of page.arrays) {
    const Codes = type === "int8" ? Int8Array : Uint16Array;
    const codes = new Codes(bytes, start, shape.reduce((a, b) => a * b));
    start += codes.byteLength;
    arrays[name] = { codes, shape, low, step };
  }
  return arrays;
}

/** Row i of an array with two axes. */
function row({ codes, shape, low, step }, i) {
  const columns = shape[1];
  return low.map((value, j) => value + step[j] * codes[i * columns + j]);
}

// --- Drawing ---------------------------------------------------------------------------------

const vertexShader = (components) => `#version 300 es
precision highp float;
precision highp sampler2DArray;
uniform sampler2DArray neutral;     // position and opacity; RGB and head weight; quaternion; scales
uniform sampler2DArray components;  // of each its displacement, then its change of colour
uniform vec2 strengths[${components}];
uniform mat3 headRotation, viewRotation;
uniform vec3 headTranslation, viewTranslation;
uniform vec4 headQuaternion;
uniform vec2 focal, centre, size;   // pixels
uniform float pixel;                // of the training, at the head, dm
in uint index;
out vec2 offset;
flat out vec4 conic;                // and the opacity
flat out vec3 colour;

vec4 multiply(vec4 p, vec4 q) {
  return vec4(p.x * q.x - dot(p.yzw, q.yzw), p.x * q.yzw + q.x * p.yzw + cross(p.yzw, q.yzw));
}

mat3 toMatrix(vec4 q) {
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
              2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
              2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

void main() {
  ivec2 place = ivec2(int(index) % ${WIDTH}, int(index) / ${WIDTH});
  vec4 first = texelFetch(neutral, ivec3(place, 0), 0);
  vec4 second = texelFetch(neutral, ivec3(place, 1), 0);
  vec4 rest = texelFetch(neutral, ivec3(place, 2), 0);
  vec3 scales = exp(texelFetch(neutral, ivec3(place, 3), 0).xyz);
  vec3 position = first.xyz;
  colour = second.rgb;
  for (int k = 0; k < ${components}; k++) {
    position += strengths[k].x * texelFetch(components, ivec3(place, 2 * k), 0).xyz;
    colour += strengths[k].y * texelFetch(components, ivec3(place, 2 * k + 1), 0).xyz;
  }
  colour = clamp(colour, 0.0, 1.0);
  position = mix(position, headRotation * position + headTranslation, second.a);
  vec4 turned = multiply(headQuaternion, rest);
  vec4 quaternion = normalize(mix(dot(rest, turned) < 0.0 ? -rest : rest, turned, second.a));

  vec3 seen = viewRotation * position + viewTranslation;
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // outside, unless more is known
  if (seen.z < 0.1) return;
  // The Jacobian is frozen somewhat outside the image, where the affine projection is none.
  vec2 margin = 0.15 * size, low = (-centre - margin) / focal, high = (size - centre + margin) / focal;
  vec2 ray = clamp(seen.xy / seen.z, low, high);
  mat3 axes = viewRotation * toMatrix(quaternion);
  axes = mat3(scales.x * axes[0], scales.y * axes[1], scales.z * axes[2]);
  vec3 across = (focal.x / seen.z) * vec3(1.0, 0.0, -ray.x) * axes;
  vec3 down = (focal.y / seen.z) * vec3(0.0, 1.0, -ray.y) * axes;
  // As wide as in the training, where a pixel covered this much, and never less than a pixel here.
  vec2 blur = ${LOW_PASS} * max(pow(pixel * focal / seen.z, vec2(2.0)), vec2(1.0));
  vec3 covariance = vec3(dot(across, across) + blur.x, dot(across, down), dot(down, down) + blur.y);
  float determinant = covariance.x * covariance.z - covariance.y * covariance.y;
  conic = vec4(vec3(covariance.z, -covariance.y, covariance.x) / determinant, first.w);

  float reach = 2.0 * log(255.0 * first.w);  // squared distance at which alpha is 1/255
  if (reach <= 0.0) return;
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  offset = corner * sqrt(reach * covariance.xz);
  vec2 point = focal * seen.xy / seen.z + centre + offset;
  gl_Position = vec4(vec2(2.0, -2.0) * point / size + vec2(-1.0, 1.0), 0.0, 1.0);
}`;

const FRAGMENT_SHADER = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec4 conic;
flat in vec3 colour;
out vec4 result;

void main() {
  float power = 0.5 * (conic.x * offset.x * offset.x + conic.z * offset.y * offset.y)
    + conic.y * offset.x * offset.y;
  float alpha = min(conic.w * exp(-power), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(colour * alpha, alpha);
}`;

/** What the graphics card needs of the arrays, once. */
function upload(gl, { neutral, components }) {
  const count = neutral.shape[0], layers = 2 * components.shape[0];
  const height = Math.ceil(count / WIDTH), padded = WIDTH * height;
  const program = gl.createProgram();
  const sources = { [gl.VERTEX_SHADER]: vertexShader(layers / 2), [gl.FRAGMENT_SHADER]: FRAGMENT_SHADER };
  for (const [kind, source] of Object.entries(sources)) {
    const shader = gl.createShader(Number(kind));
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);

  const texture = (unit, format, depth) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, gl.createTexture());
    gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, format, WIDTH, height, depth);
  };
  const fill = (layer, format, type, values) =>
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, layer, WIDTH, height, 1, format, type, values);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  texture(0, gl.RGBA32F, 4);
  const values = new Float32Array(16 * padded);
  for (let i = 0; i < count; i++) {
    row(neutral, i).forEach((value, j) => { values[4 * ((j >> 2) * padded + i) + (j & 3)] = value; });
  }
  for (let layer = 0; layer < 4; layer++)
    fill(layer, gl.RGBA, gl.FLOAT, values.subarray(4 * layer * padded, 4 * (layer + 1) * padded));
  texture(1, gl.RGB8_SNORM, layers);
  const codes = new Int8Array(3 * padded);
  for (let layer = 0; layer < layers; layer++) {
    codes.set(components.codes.subarray(3 * layer * count, 3 * (layer + 1) * count));
    fill(layer, gl.RGB, gl.BYTE, codes);
  }

  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, 4 * count, gl.DYNAMIC_DRAW);
  const index = gl.getAttribLocation(program, "index");
  gl.enableVertexAttribArray(index);
  gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(index, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); // premultiplied, from back to front
  gl.clearColor(1, 1, 1, 1);
  const uniforms = new Proxy({}, { get: (_, name) => gl.getUniformLocation(program, name) });
  gl.uniform1i(uniforms.neutral, 0);
  gl.uniform1i(uniforms.components, 1);
  gl.uniform1f(uniforms.pixel, page.pixel);
  return uniforms;
}

/** Row-major 3×3 matrix of a quaternion. */
function toMatrix([w, x, y, z]) {
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
}

/** Draws the avatar, see `draw`. */
class Renderer {
  constructor(arrays) {
    const { neutral, components } = arrays;
    this.components = components;
    this.count = neutral.shape[0];
    this.points = new Float32Array(3 * this.count); // moved by the coefficients
    this.neutral = new Float32Array(3 * this.count);
    this.weights = new Float32Array(this.count);
    for (let i = 0; i < this.count; i++) {
      const values = row(neutral, i);
      this.neutral.set(values.slice(0, 3), 3 * i);
      this.weights[i] = values[7];
    }
    this.depths = new Float32Array(this.count);
    this.order = new Uint32Array(this.count);
    this.bins = new Uint32Array(1 << 16);
    this.gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!this.gl) throw new Error("this browser has no WebGL 2");
    this.uniforms = upload(this.gl, arrays);
  }

  /**
   * Draws into the canvas, at its size.
   * @param coefficients of the components.
   * @param pose quaternion and translation of the head.
   * @param view rotation (row-major) and translation from canonical space to the camera, focal
   *   lengths and centre in pixels.
   */
  draw(coefficients, pose, view) {
    const { gl, uniforms, count } = this;
    const rotation = toMatrix(pose), translation = pose.slice(4);
    this.move(coefficients);
    this.sort(rotation, translation, view);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, this.order);
    const strengths = this.components.step.map((step, i) => 127 * step * coefficients[i >> 1]);
    gl.uniform2fv(uniforms.strengths, strengths);
    gl.uniformMatrix3fv(uniforms.headRotation, true, rotation);
    gl.uniform3fv(uniforms.headTranslation, translation);
    gl.uniform4fv(uniforms.headQuaternion, pose.slice(0, 4));
    gl.uniformMatrix3fv(uniforms.viewRotation, true, view.rotation);
    gl.uniform3fv(uniforms.viewTranslation, view.translation);
    gl.uniform2fv(uniforms.focal, view.focal);
    gl.uniform2fv(uniforms.centre, view.centre);
    gl.uniform2f(uniforms.size, canvas.width, canvas.height);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
  }

  /** The points that the coefficients give, for sorting. */
  move(coefficients) {
    const { points, components: { codes, step }, count } = this;
    points.set(this.neutral);
    coefficients.forEach((coefficient, k) => {
      const factor = coefficient * step[2 * k], start = 6 * count * k;
      if (factor) for (let i = 0; i < 3 * count; i++) points[i] += factor * codes[start + i];
    });
  }

  /** The order from back to front, by counting depths in 65,536 bins. */
  sort(rotation, translation, view) {
    const { points, weights, depths, order, bins, count } = this;
    const [x, y, z] = view.rotation.slice(6);
    const staying = [x, y, z, view.translation[2]];
    const riding = [0, 1, 2].map((i) => x * rotation[i] + y * rotation[3 + i] + z * rotation[6 + i]);
    riding.push(x * translation[0] + y * translation[1] + z * translation[2] + staying[3]);
    const along = ([a, b, c, d], i) => a * points[i] + b * points[i + 1] + c * points[i + 2] + d;
    let near = Infinity, far = -Infinity;
    for (let i = 0; i < count; i++) {
      const rest = along(staying, 3 * i);
      depths[i] = rest + weights[i] * (along(riding, 3 * i) - rest);
      near = Math.min(near, depths[i]);
      far = Math.max(far, depths[i]);
    }
    const factor = (bins.length - 1) / (far - near || 1);
    const bin = (i) => ((far - depths[i]) * factor) | 0;
    bins.fill(0);
    for (let i = 0; i < count; i++) bins[bin(i)]++;
    for (let i = 0, start = 0; i < bins.length; i++) {
      const size = bins[i];
      bins[i] = start;
      start += size;
    }
    for (let i = 0; i < count; i++) order[bins[bin(i)]++] = i;
  }
}

// --- The page --------------------------------------------------------------------------------

/** A camera on a sphere around the head that looks at its middle; angles in radians. */
class Orbit {
  constructor(changed) {
    this.reset();
    const pointers = new Map();
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      const before = pointers.size === 2 && spread();
      pointers.set(event.pointerId, event);
      if (before) this.zoom(spread() / before);
      else this.turn(event.clientX - last.clientX, event.clientY - last.clientY);
      changed();
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-0.001 * event.deltaY));
      changed();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { this.reset(); changed(); });
  }

  reset() {
    Object.assign(this, { azimuth: 0, elevation: 0, magnification: 1 });
  }

  turn(x, y) {
    this.azimuth -= 0.008 * x;
    this.elevation = Math.max(-1.4, Math.min(1.4, this.elevation + 0.008 * y));
  }

  zoom(factor) {
    this.magnification = Math.max(0.3, Math.min(6, this.magnification * factor));
  }

  view() {
    const { width, height } = canvas, { centre, radius, distance } = page;
    const [sa, ca] = [Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const [se, ce] = [Math.sin(this.elevation), Math.cos(this.elevation)];
    const rotation = [ca, 0, -sa, sa * se, -ce, ca * se, -sa * ce, -se, -ca * ce];
    const translation = [0, 1, 2].map((i) =>
      (i === 2 ? distance : 0) - centre.reduce((sum, value, j) => sum + rotation[3 * i + j] * value, 0));
    const focal = (this.magnification * Math.min(width, height) * distance) / (2 * radius);
    return { rotation, translation, focal: [focal, focal], centre: [width / 2, height / 2] };
  }
}

const mix = (a, b, t) => a.map((value, i) => value + t * (b[i] - value));

/** The pose between two, t of the way. */
function mixPoses(a, b, t) {
  const sign = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] < 0 ? -1 : 1;
  const pose = mix(a, b.map((value, i) => (i < 4 ? sign * value : value)), t);
  const length = Math.hypot(...pose.slice(0, 4));
  return pose.map((value, i) => (i < 4 ? value / length : value));
}

/** Sliders, buttons and playing; calls `changed` when there is something new to draw. */
class Controls {
  constructor(arrays, changed) {
    Object.assign(this, { arrays, changed, playing: false, position: 0 });
    this.button("buttons", "Play", "play", () => this.toggle());
    this.button("buttons", "Neutral", "neutral", () => this.set(this.coefficients.map(() => 0)));
    for (let i = 0; i < arrays.expressions.shape[0]; i++)
      this.button("expressions", `${i + 1}`, "expression", () => this.set(row(arrays.expressions, i)));
    const [lowest, highest] = [row(arrays.ranges, 0), row(arrays.ranges, 1)];
    this.sliders = lowest.map((low, k) => this.slider(k, low, highest[k]));
    this.set(lowest.map(() => 0));
  }

  button(place, text, name, action) {
    const button = Object.assign(document.createElement("button"), { textContent: text, className: name });
    button.addEventListener("click", action);
    document.getElementById(place).append(button);
  }

  slider(k, low, high) {
    const input = Object.assign(document.createElement("input"), { type: "range", min: low, max: high, step: "any" });
    input.addEventListener("input", () => {
      this.stop();
      this.coefficients[k] = input.valueAsNumber;
      this.changed();
    });
    const label = Object.assign(document.createElement("label"), { textContent: k + 1 });
    label.append(input);
    document.getElementById("sliders").append(label);
    return input;
  }

  set(coefficients, pose = STILL) {
    if (pose === STILL) this.stop();
    this.coefficients = coefficients;
    this.pose = pose;
    this.sliders.forEach((slider, k) => { slider.valueAsNumber = coefficients[k]; });
    this.changed();
  }

  stop() {
    this.playing = false;
    document.querySelector(".play").textContent = "Play";
  }

  toggle() {
    if (this.playing) return this.stop();
    this.playing = true;
    document.querySelector(".play").textContent = "Pause";
    let last = performance.now();
    const next = (now) => {
      if (!this.playing) return;
      this.position += (page.rate * (now - last)) / 1000;
      last = now;
      this.show(this.position);
      requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
  }

  /** The tracked sequence at a timestep, which may lie between two; to its end and back again. */
  show(position) {
    const { coefficients, poses } = this.arrays, end = coefficients.shape[0] - 1;
    const turned = end ? position % (2 * end) : 0;
    const timestep = Math.min(turned, 2 * end - turned);
    const first = Math.floor(timestep), second = Math.min(first + 1, end), t = timestep - first;
    this.set(
      mix(row(coefficients, first), row(coefficients, second), t),
      mixPoses(row(poses, first), row(poses, second), t),
    );
  }
}

async function start() {
  const arrays = await readArrays();
  let renderer = new Renderer(arrays), waiting = false;
  const draw = () => {
    waiting = false;
    renderer.draw(controls.coefficients, controls.pose, orbit.view());
  };
  const changed = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const orbit = new Orbit(changed), controls = new Controls(arrays, changed);
  new ResizeObserver(() => {
    const ratio = Math.min(window.devicePixelRatio, MAX_PIXEL_RATIO);
    canvas.width = Math.max(1, Math.round(ratio * canvas.clientWidth));
    canvas.height = Math.max(1, Math.round(ratio * canvas.clientHeight));
    draw(); // at once: the canvas is black now
  }).observe(canvas);
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    renderer = new Renderer(arrays);
    changed();
  });
  return { renderer, controls };
}

const started = start();
started.catch((error) => {
  document.getElementById("message").textContent = `The avatar cannot be shown: ${error.message}.`;
});

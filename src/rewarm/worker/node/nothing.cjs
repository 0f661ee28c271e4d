// What a waiting runtime runs once, see runtime.mjs.

exports.handler = async (event) => event;

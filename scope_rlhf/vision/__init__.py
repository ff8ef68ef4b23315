"""Layer 3: image classification with the policy objectives, as a one-step problem with advantages of one."""

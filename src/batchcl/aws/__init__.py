"""Access to AWS: sessions, credentials, signed requests, and the operations of Rekognition and S3."""
